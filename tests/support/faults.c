/* A file system that fails: preloaded, it makes calls on files below FAULT_UNDER fail with FAULT_ERRNO from the
   FAULT_NTH one on (0: none). FAULT_COUNTER is a file of 8 bytes that counts them, shared with who watches. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long *counter;

static int fails(const char *path, int opens) {
    const char *under = getenv("FAULT_UNDER"), *nth = getenv("FAULT_NTH"), *number = getenv("FAULT_ERRNO");
    const char *file = getenv("FAULT_COUNTER");
    if (!under || !nth || !number || !file || !path || strncmp(path, under, strlen(under))) return 0;
    int error = atoi(number);
    if ((error == EMFILE || error == ENFILE) && !opens) return 0;
    if (!counter) {
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
        int fd = real(file, O_RDWR);
        if (fd < 0) return 0;
        counter = mmap(NULL, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
    }
    long count = __sync_add_and_fetch(counter, 1), from = atol(nth);
    if (!from || count < from) return 0;
    errno = error;
    return 1;
}

static int fd_fails(int fd) {
    char link[64], path[PATH_MAX + 1];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int kept = errno;
    ssize_t length = readlink(link, path, PATH_MAX);
    errno = kept;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(path, 0);
}

#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT))
#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                                                   \
    int name(const char *path, int flags, ...) {                                                     \
        REAL(int, name, const char *, int, ...);                                                     \
        va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more);             \
        int machine = getenv("FAULT_ERRNO") && atoi(getenv("FAULT_ERRNO")) == EMFILE;                \
        if ((WRITES(flags) || machine) && fails(path, 1)) return -1;                                 \
        return real(path, flags, mode);                                                              \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                 \
    int name(int folder, const char *path, int flags, ...) {                                         \
        REAL(int, name, int, const char *, int, ...);                                                \
        va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more);             \
        if (WRITES(flags) && fails(path, 1)) return -1;                                              \
        return real(folder, path, flags, mode);                                                      \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                                  \
    FILE *name(const char *path, const char *mode) {                                                 \
        REAL(FILE *, name, const char *, const char *);                                              \
        if (strpbrk(mode, "wa+") && fails(path, 1)) return NULL;                                     \
        return real(path, mode);                                                                     \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    return fd_fails(fd) ? -1 : real(fd, data, size);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    return fd_fails(fd) ? -1 : real(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    return fd_fails(fd) ? -1 : real(fd, parts, count);
}
int fsync(int fd) { REAL(int, fsync, int); return fd_fails(fd) ? -1 : real(fd); }
int fdatasync(int fd) { REAL(int, fdatasync, int); return fd_fails(fd) ? -1 : real(fd); }
int ftruncate64(int fd, off64_t size) { REAL(int, ftruncate64, int, off64_t); return fd_fails(fd) ? -1 : real(fd, size); }
int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    return fails(to, 0) ? -1 : real(from, to);
}
int mkdir(const char *path, mode_t mode) { REAL(int, mkdir, const char *, mode_t); return fails(path, 0) ? -1 : real(path, mode); }
