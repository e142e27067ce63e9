"""A Kubernetes manifest: the configuration as a ConfigMap, and an Indexed Job of workers that read it.

Pods that a node takes with it (drained, pre-empted, lost) are replaced and not counted as failures; neither are those
that ended because they were told to (status 143). Others are tried again, each index by itself, so that one broken pod
does not end the others.
"""

import logging
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from schemas.errors import UserError
from schemas.regular_files import read_file
from teacher_cache.fleet.worker_command import WorkerCommand, check_form, check_printable

RETRIES = 3  # of one index, after failures of its own
STOPPED = 143  # exit status of a worker that SIGTERM has stopped
MAX_CONFIG_BYTES = 1 << 19  # a ConfigMap takes 1 MiB
CONFIG_FOLDER, CONFIG_FILE = "/etc/teacher-cache", "config.yaml"
SHARED_MEMORY = "/dev/shm"
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
SUBDOMAIN = rf"{LABEL}(\.{LABEL})*"
logger = logging.getLogger(__name__)
Tree = dict[str, Any]


class Mount(NamedTuple):
    """A persistent volume claim, and where a pod has it."""

    claim: str
    path: str
    read_only: bool


@dataclass(frozen=True)
class KubernetesOptions:
    """What is asked of Kubernetes; None: what the cluster gives."""

    workers: int
    image: str
    namespace: str | None = None
    volumes: tuple[str, ...] = ()  # CLAIM:PATH or CLAIM:PATH:ro
    secrets: tuple[str, ...] = ()  # whose entries are environment variables of the workers
    service_account: str | None = None
    gpus: int | None = None  # of a worker; None: as many as the model is split over
    cpus: int | None = None
    mem: str | None = None
    grace: int = 300  # seconds from SIGTERM to the end


def kubernetes_manifest(command: WorkerCommand, options: KubernetesOptions) -> list[Tree]:
    """The ConfigMap and the Job. Raises UserError."""
    _check(options)
    mounts = [_mount(text) for text in options.volumes]
    _check_mounts(mounts)
    _check_paths(command, mounts)
    data = read_file(command.config, what="cannot read the configuration")
    if len(data) > MAX_CONFIG_BYTES:
        raise UserError(f"{command.config}: {len(data)} bytes, at most {MAX_CONFIG_BYTES} fit into a ConfigMap")
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": _metadata(command, options),
            "data": {CONFIG_FILE: data.decode()},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": _metadata(command, options),
            "spec": {
                "completions": options.workers,
                "parallelism": options.workers,
                "completionMode": "Indexed",
                "backoffLimitPerIndex": RETRIES,
                "podFailurePolicy": {"rules": _not_counted()},
                "template": {"spec": _pod(command, options, mounts)},
            },
        },
    ]


def as_yaml(manifest: Sequence[Tree]) -> str:
    """The manifest as ``kubectl apply -f -`` takes it."""
    return yaml.dump_all(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 16)


def as_list(manifest: Sequence[Tree]) -> Tree:
    """The same as one object, for JSON."""
    return {"apiVersion": "v1", "kind": "List", "items": list(manifest)}


def _metadata(command: WorkerCommand, options: KubernetesOptions) -> Tree:
    return {"name": command.name} | ({"namespace": options.namespace} if options.namespace else {})


def _not_counted() -> list[Tree]:
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Ignore", "onExitCodes": {"containerName": "worker", "operator": "In", "values": [STOPPED]}},
    ]


def _pod(command: WorkerCommand, options: KubernetesOptions, mounts: Sequence[Mount]) -> Tree:
    volumes: list[Tree] = [{"name": "config", "configMap": {"name": command.name}}]
    places: list[Tree] = [{"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}]
    for number, mount in enumerate(mounts):
        claim = {"claimName": mount.claim, "readOnly": mount.read_only}
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": claim})
        places.append({"name": f"volume-{number}", "mountPath": mount.path, "readOnly": mount.read_only})
    if command.shared_memory:  # processes that talk through it; pods have 64 MB
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
        places.append({"name": "shared-memory", "mountPath": SHARED_MEMORY})
    asked = {"nvidia.com/gpu": command.gpus(options.gpus) or None, "cpu": options.cpus, "memory": options.mem}
    limits = {name: value if name == "nvidia.com/gpu" else str(value) for name, value in asked.items() if value}
    words = [word.replace("$", "$$") for word in command.words(posixpath.join(CONFIG_FOLDER, CONFIG_FILE))]
    worker = {
        "name": "worker",
        "image": options.image,
        "command": words[:1],  # without a shell, which would not pass SIGTERM on
        "args": words[1:],
        "resources": {"limits": limits, "requests": dict(limits)},
        **({"envFrom": [{"secretRef": {"name": name}} for name in options.secrets]} if options.secrets else {}),
        "volumeMounts": places,
    }
    account = {"serviceAccountName": options.service_account} if options.service_account else {}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        **account,
        "containers": [worker],
        "volumes": volumes,
    }


def _check(options: KubernetesOptions) -> None:
    check_printable(options.image, "--image")
    check_form("--image", options.image, r"[\w./:@-]+", "registry.example.org/teacher-cache:1")
    check_form("--namespace", options.namespace, LABEL, "distillation")
    check_form("--service-account", options.service_account, SUBDOMAIN, "teacher-cache")
    check_form("--mem", options.mem, r"\d+([KMGT]i?|k)?", "200Gi")
    for name in options.secrets:
        check_form("--secret", name, SUBDOMAIN, "s3-credentials")


def _mount(text: str) -> Mount:
    claim, _, rest = text.partition(":")
    path, colon, mode = rest.partition(":")
    check_printable(text, "--volume")
    check_form("--volume", claim, SUBDOMAIN, "models:/models:ro")
    is_folder = path.startswith("/") and not path.startswith("//") and path != "/" and posixpath.normpath(path) == path
    if not is_folder or (colon and mode != "ro"):
        raise UserError(f"--volume {text}: expected CLAIM:/FOLDER, or CLAIM:/FOLDER:ro for one that is only read")
    return Mount(claim, path, bool(colon))


def _check_mounts(mounts: Sequence[Mount]) -> None:
    taken = {CONFIG_FOLDER, SHARED_MEMORY}
    for mount in mounts:
        if mount.path in taken:
            raise UserError(
                f"--volume {mount.claim}:{mount.path}: there is something else at {mount.path}; choose another"
            )
        taken.add(mount.path)


def _check_paths(command: WorkerCommand, mounts: Sequence[Mount]) -> None:
    """Refuse an output that would vanish with its pod; warn of other paths that are in no volume."""
    for key, written in command.written().items():
        mount = _mount_of(written, mounts)
        if mount is None:
            raise UserError(
                f"{key}: {written}: in no mounted volume, so it would be lost with its pod; mount one that all workers "
                "may write (--volume CLAIM:/FOLDER, ReadWriteMany) and use a path below it"
                f"{', or an object store' if key == 'output.path' else ''}"
            )
        if mount.read_only:
            raise UserError(f"{key}: {written}: the volume {mount.claim} is mounted only to be read; leave out :ro")
    for key, path in command.paths():
        if _mount_of(path, mounts) is None and (path.startswith("/") or Path(path).exists()):
            logger.warning("%s: %s: in no mounted volume, so it must be in the image", key, path)


def _mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The innermost volume that has this path."""
    normal = posixpath.normpath(path)
    around = [each for each in mounts if normal == each.path or normal.startswith(f"{each.path}/")]
    return max(around, key=lambda each: len(each.path), default=None)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
