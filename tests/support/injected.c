/* Failures of the file system, injected into whatever process loads this library (LD_PRELOAD).

   Calls that touch files below a folder are counted in memory that forked processes share. From the moment fault_arm()
   was called, call number n fails with an errno, or kills the process; so do all later ones that need room, if asked. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FILES 65536
static long *counter;
static char folder[4096];
static size_t folder_length;
static long at = -1;
static int with, lasting, armed;
static unsigned char watched[MAX_FILES];

__attribute__((constructor)) static void begin(void) {
    counter = mmap(NULL, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void fault_arm(const char *below, long n, int number, int for_ever) {
    snprintf(folder, sizeof folder, "%s", below);
    folder_length = strlen(folder);
    *counter = 0;
    at = n;
    with = number;
    lasting = for_ever;
    armed = 1;
}

long fault_count(void) { return *counter; }

static int is_below(const char *path) {
    return armed && path && (path[0] != '/' || !strncmp(path, folder, folder_length));
}

enum { READS = 0, NEEDS_ROOM = 1, OPENS = 2 };

/* Count a call of this kind, if what is injected can happen to it; whether it is to fail. */
static int fails(int kind) {
    if ((with == ENOSPC || with == EDQUOT) && !(kind & NEEDS_ROOM)) return 0;
    if (with == EMFILE && !(kind & OPENS)) return 0;
    long n = __sync_add_and_fetch(counter, 1);
    if (at < 0 || n < at || (n > at && !lasting)) return 0;
    if (with == 0) raise(SIGKILL);
    errno = with;
    return 1;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
static int opened(int fd, const char *path) {
    if (fd >= 0 && fd < MAX_FILES) watched[fd] = is_below(path);
    return fd;
}
static int is_watched(int fd) { return armed && fd >= 0 && fd < MAX_FILES && watched[fd]; }

#define OPEN(name)                                                                        \
    int name(const char *path, int flags, ...) {                                          \
        REAL(name);                                                                       \
        mode_t mode = 0;                                                                  \
        va_list list;                                                                     \
        va_start(list, flags);                                                            \
        if (flags & (O_CREAT | __O_TMPFILE)) mode = va_arg(list, mode_t);                 \
        va_end(list);                                                                     \
        if (is_below(path) && fails(OPENS | (flags & O_CREAT ? NEEDS_ROOM : 0))) return -1;                          \
        return opened(real(path, flags, mode), path);                                     \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                      \
    int name(int at_fd, const char *path, int flags, ...) {                               \
        REAL(name);                                                                       \
        mode_t mode = 0;                                                                  \
        va_list list;                                                                     \
        va_start(list, flags);                                                            \
        if (flags & (O_CREAT | __O_TMPFILE)) mode = va_arg(list, mode_t);                 \
        va_end(list);                                                                     \
        if (is_below(path) && fails(OPENS | (flags & O_CREAT ? NEEDS_ROOM : 0))) return -1;                          \
        return opened(real(at_fd, path, flags, mode), path);                              \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                       \
    FILE *name(const char *path, const char *mode) {                                      \
        REAL(name);                                                                       \
        if (is_below(path) && fails(OPENS | (mode[0] != 'r' ? NEEDS_ROOM : 0))) return NULL;                         \
        FILE *file = real(path, mode);                                                    \
        if (file) opened(fileno(file), path);                                             \
        return file;                                                                      \
    }
FOPEN(fopen)
FOPEN(fopen64)

#define ON_FD(type, name, parameters, arguments, room)                                    \
    type name parameters {                                                                \
        REAL(name);                                                                       \
        if (is_watched(fd) && fails(room)) return -1;                                     \
        return real arguments;                                                            \
    }
ON_FD(ssize_t, read, (int fd, void *data, size_t n), (fd, data, n), 0)
ON_FD(ssize_t, pread, (int fd, void *data, size_t n, off_t from), (fd, data, n, from), 0)
ON_FD(ssize_t, pread64, (int fd, void *data, size_t n, off64_t from), (fd, data, n, from), 0)
ON_FD(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n), 1)
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t from), (fd, data, n, from), 1)
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t from), (fd, data, n, from), 1)
ON_FD(ssize_t, writev, (int fd, const struct iovec *parts, int n), (fd, parts, n), 1)
ON_FD(int, fsync, (int fd), (fd), 1)
ON_FD(int, fdatasync, (int fd), (fd), 1)
ON_FD(int, ftruncate, (int fd, off_t size), (fd, size), 1)
ON_FD(int, ftruncate64, (int fd, off64_t size), (fd, size), 1)

#define ON_PATH(name, parameters, arguments, path, room)                                  \
    int name parameters {                                                                 \
        REAL(name);                                                                       \
        if (is_below(path) && fails(room)) return -1;                                     \
        return real arguments;                                                            \
    }
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), path, 1)
ON_PATH(rename, (const char *from, const char *to), (from, to), to, 1)
ON_PATH(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), to, 1)
ON_PATH(renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags), to, 1)
ON_PATH(link, (const char *from, const char *to), (from, to), to, 1)
ON_PATH(linkat, (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags), to, 1)
ON_PATH(symlink, (const char *from, const char *to), (from, to), to, 1)
ON_PATH(unlink, (const char *path), (path), path, 0)
ON_PATH(rmdir, (const char *path), (path), path, 0)

int close(int fd) {
    REAL(close);
    if (fd >= 0 && fd < MAX_FILES) watched[fd] = 0;
    return real(fd);
}
