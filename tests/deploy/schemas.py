"""The part of the schemas of Kubernetes, LeaderWorkerSet and compose that deploy/ uses. A name that is not here is a mistake, or to be added."""

from __future__ import annotations

from typing import Any

METADATA: dict[str, Any] = {"name?": str, "labels?": {"*": str}}
EXEC_PROBE = {"exec": {"command": [str]}, "periodSeconds": int, "timeoutSeconds": int, "failureThreshold": int}
QUANTITIES = {"*": (int, str)}
ENV = {"name": str, "value?": str, "valueFrom?": {"secretKeyRef": {"name": str, "key": str}}}
CONTAINER = {
    "name": str, "image": str, "args?": [str], "env?": [ENV], "ports?": [{"name": str, "containerPort": int}],
    "startupProbe?": EXEC_PROBE, "readinessProbe?": EXEC_PROBE, "livenessProbe?": EXEC_PROBE,
    "resources?": {"limits?": QUANTITIES, "requests?": QUANTITIES},
    "securityContext?": {"allowPrivilegeEscalation": bool, "readOnlyRootFilesystem": bool, "capabilities": {"drop": [str]}},
    "volumeMounts?": [{"name": str, "mountPath": str, "readOnly?": bool}],
}  # fmt: skip
VOLUME = {
    "name": str, "emptyDir?": {"medium?": ("Memory", ""), "sizeLimit?": str}, "persistentVolumeClaim?": {"claimName": str, "readOnly?": bool},
}  # fmt: skip
POD = {
    "automountServiceAccountToken?": bool, "terminationGracePeriodSeconds?": int, "containers": [CONTAINER], "volumes?": [VOLUME],
    "securityContext?": {"runAsNonRoot": bool, "runAsUser": int, "runAsGroup": int, "fsGroup": int, "seccompProfile": {"type": ("RuntimeDefault",)}},
}  # fmt: skip
KINDS: dict[str, Any] = {
    "LeaderWorkerSet": {
        "apiVersion": ("leaderworkerset.x-k8s.io/v1",), "kind": ("LeaderWorkerSet",), "metadata": METADATA,
        "spec": {
            "replicas": int, "startupPolicy?": ("LeaderCreated", "LeaderReady"),
            "rolloutStrategy?": {"type": ("RollingUpdate",), "rollingUpdateConfiguration": {"maxUnavailable": int, "maxSurge": int}},
            "leaderWorkerTemplate": {
                "size": int, "restartPolicy": ("RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"),
                "workerTemplate": {"metadata": METADATA, "spec": POD},
            },
        },
    },
    "Service": {
        "apiVersion": ("v1",), "kind": ("Service",), "metadata": METADATA,
        "spec": {
            "selector": {"*": str}, "sessionAffinity": ("ClientIP", "None"), "sessionAffinityConfig?": {"clientIP": {"timeoutSeconds": int}},
            "ports": [{"name": str, "port": int, "targetPort": (int, str)}],
        },
    },
    "PodDisruptionBudget": {
        "apiVersion": ("policy/v1",), "kind": ("PodDisruptionBudget",), "metadata": METADATA,
        "spec": {"minAvailable": int, "selector": {"matchLabels": {"*": str}}},
    },
}  # fmt: skip
COMPOSE = {
    "services": {
        "*": {
            "image": str, "build": {"context": str, "dockerfile": str, "args": {"*": str}}, "environment": {"*": str}, "ports": [str], "user": str,
            "read_only": bool, "tmpfs": [str], "volumes": [str], "cap_drop": [str], "security_opt": [str], "pids_limit": int, "shm_size": str,
            "stop_grace_period": str, "restart": ("no", "always", "on-failure", "unless-stopped"),
        }
    },
    "volumes": {"*": (type(None), dict)},
}  # fmt: skip
