{{/*
A pod of the Ray cluster: (dict "root" $ "kind" "head"|"worker" "values" .Values.ray.head "pool" pool). KubeRay puts
`ray start` with the group's rayStartParams in as the command.
*/}}
{{- define "r1.rayPod" -}}
{{- $ := .root -}}{{- $pod := .values -}}{{- $worker := eq .kind "worker" -}}
{{- $cpu := eq (include "r1.cpu" $) "true" -}}{{- $rdma := and $worker (include "r1.rdma" $) -}}
metadata:
  labels:
    {{- include "r1.podLabels" (list $ .kind) | nindent 4 }}
    {{- with $pod.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # Another plan makes another cluster, beside this one until it is ready.
    r1-serve/plan: {{ include "r1.hash" $.Values.plan }}
    {{- with $pod.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "r1.serviceAccount" (list $ "ray") }}
  # Only the head's autoscaler asks the API server for anything.
  automountServiceAccountToken: {{ and (not $worker) $.Values.ray.autoscaler.enabled }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add $.Values.ray.worker.leaveSeconds (ternary 60 120 $worker) }}
  securityContext: {{ toYaml $.Values.podSecurityContext | nindent 4 }}
  {{- include "r1.placement" (list $ $pod) | nindent 2 }}
  {{- with $pod.affinity }}
  affinity: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- if and $worker (eq $.Values.weights.type "pvc") $.Values.weights.fetch.url }}
  initContainers: {{ include "r1.fetchInit" (list $) | nindent 4 }}
  {{- end }}
  {{- with $pod.resourceClaims }}
  resourceClaims: {{ toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: ray-{{ .kind }}
      image: {{ include "r1.image" $ }}
      imagePullPolicy: {{ $.Values.image.pullPolicy }}
      {{- if and $rdma $.Values.rdma.ipcLock }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        privileged: false
        capabilities: {drop: [ALL], add: [IPC_LOCK]}
      {{- else }}
      {{- include "r1.containerSecurity" $ | nindent 6 }}
      {{- end }}
      ports:
        {{- if $worker }}
        - {name: metrics, containerPort: 8080}
        {{- else }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        - {name: metrics, containerPort: 8080}
        # KubeRay's Serve service wants the name; nothing listens there.
        - {name: serve, containerPort: 8000}
        {{- end }}
      env:
        {{- if eq $.Values.ray.auth.mode "token" }}
        - {name: RAY_AUTH_MODE, value: token}
        {{- else }}
        - {name: RAY_AUTH_MODE, value: disabled}
        {{- end }}
        - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
        - {name: RAY_COLOR_PREFIX, value: "0"}
        # Ray would run its workers at nice 15: the engines would yield to everything else on the node.
        - {name: RAY_worker_niceness, value: "0"}
        # A process may see the accelerators of its pod: Serve's own hold none.
        - {name: RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO, value: "0"}
        # The preStop hook has drained already; Ray would wait half a minute more for its Serve controller.
        - {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: "0"}
        - {name: HOME, value: /home/r1}
        - {name: R1_RUN_DIR, value: /tmp/r1}
        - {name: R1_LOG_FORMAT, value: json}
        {{- with $.Values.monitoring.otlpEndpoint }}
        - {name: R1_OTLP_ENDPOINT, value: {{ . | quote }}}
        {{- end }}
        {{- if $.Values.ray.autoscaler.enabled }}
        - {name: R1_MAX_GANGS, value: {{ $.Values.ray.autoscaler.maxGangs | int | quote }}}
        {{- end }}
        {{- if $worker }}
        {{- include "r1.fleetTokenEnv" $ | nindent 8 }}
        - {name: R1_LEAVE_S, value: {{ $pod.leaveSeconds | int | quote }}}
        - name: VLLM_HOST_IP
          valueFrom: {fieldRef: {fieldPath: status.podIP}}
        {{- end }}
        {{- if ne $.Values.weights.type "builtin" }}
        - {name: R1_MODELS, value: {{ $.Values.weights.mountPath | quote }}}
        {{- end }}
        {{- with $.Values.weights.objectStore }}
        {{- if eq $.Values.weights.type "objectStore" }}
        - {name: R1_WEIGHTS, value: {{ .uri | quote }}}
        - {name: R1_LOAD_FORMAT, value: {{ .loadFormat }}}
        {{- with .endpoint }}
        - {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
        {{- end }}
        {{- end }}
        {{- end }}
        {{- if and $worker (not $cpu) }}
        - {name: VLLM_NO_USAGE_STATS, value: "1"}
        {{- end }}
        {{- if $rdma }}
        - {name: NCCL_SOCKET_IFNAME, value: {{ $.Values.rdma.socketInterface | quote }}}
        - {name: GLOO_SOCKET_IFNAME, value: {{ $.Values.rdma.socketInterface | quote }}}
        {{- with $.Values.rdma.hca }}
        - {name: NCCL_IB_HCA, value: {{ . | quote }}}
        {{- end }}
        {{- if ge (int $.Values.rdma.gidIndex) 0 }}
        - {name: NCCL_IB_GID_INDEX, value: {{ $.Values.rdma.gidIndex | int | quote }}}
        - {name: NVSHMEM_IB_GID_INDEX, value: {{ $.Values.rdma.gidIndex | int | quote }}}
        {{- end }}
        {{- with $.Values.rdma.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- end }}
        {{- with $pod.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if and (eq $.Values.weights.type "objectStore") $.Values.weights.objectStore.existingSecret }}
      envFrom:
        - secretRef: {name: {{ $.Values.weights.objectStore.existingSecret | quote }}}
      {{- end }}
      {{- $devices := dict }}
      {{- if and $worker (not $cpu) }}
      {{- $_ := set $devices $.Values.gpu.resource (int .pool.perPod) }}
      {{- end }}
      {{- if $rdma }}
      {{- $_ := set $devices $.Values.gpu.rdmaResource (int $.Values.rdma.count) }}
      {{- end }}
      resources:
        requests: {{ toYaml (merge (dict) ($pod.resources.requests | default dict) $devices) | nindent 10 }}
        limits: {{ toYaml (merge (dict) ($pod.resources.limits | default dict) $devices) | nindent 10 }}
        {{- with $pod.resourceClaims }}
        claims:
          {{- range . }}
          - {name: {{ .name }}}
          {{- end }}
        {{- end }}
      # KubeRay's own probes would ask Serve's proxies, which are off, and fail for ever.
      startupProbe:
        httpGet: {path: /api/local_raylet_healthz, port: 52365}
        periodSeconds: {{ $pod.startup.periodSeconds | int }}
        failureThreshold: {{ $pod.startup.failureThreshold | int }}
        timeoutSeconds: 5
      livenessProbe:
        httpGet: {path: /api/local_raylet_healthz, port: 52365}
        periodSeconds: 10
        failureThreshold: 12
        timeoutSeconds: 5
      readinessProbe:
        httpGet: {{ ternary "{path: /api/local_raylet_healthz, port: 52365}" "{path: /api/gcs_healthz, port: dashboard}" $worker }}
        periodSeconds: 5
        failureThreshold: 3
        timeoutSeconds: 5
      {{- if $worker }}
      lifecycle:
        preStop:
          exec:
            command: [r1, leave, --timeout, {{ $pod.leaveSeconds | int | quote }}]
      {{- else }}
      lifecycle:
        preStop:
          # A cluster's pods go together, and without the head Ray would end the others' ranks before they have left.
          exec:
            command: [r1, leave, --head, --timeout, {{ add $.Values.ray.worker.leaveSeconds 30 | quote }}]
      {{- end }}
      volumeMounts:
        - {name: plan, mountPath: /etc/r1/plans, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        - {name: home, mountPath: /home/r1}
        - {name: shared-memory, mountPath: /dev/shm}
        {{- if $worker }}
        {{- include "r1.fleetTokenMount" $ | nindent 8 }}
        {{- include "r1.weightsMount" (list $ "ray") | nindent 8 }}
        {{- end }}
  volumes:
    - name: plan
      configMap:
        name: {{ include "r1.name" $ }}-plan-{{ include "r1.hash" $.Values.plan }}
        items:
          - {key: plan.yaml, path: {{ include "r1.hash" $.Values.plan }}.yaml}
    - name: tmp
      emptyDir: {}
    - name: home
      emptyDir: {}
    - name: shared-memory
      emptyDir: {medium: Memory, sizeLimit: {{ ternary ($pod.sharedMemory | default "1Gi") "1Gi" $worker }}}
    {{- if $worker }}
    {{- include "r1.fleetTokenVolume" $ | nindent 4 }}
    {{- include "r1.weightsVolume" (list $ "ray") | nindent 4 }}
    {{- if eq $.Values.weights.type "pvc" }}
    {{- include "r1.sumsVolume" $ | nindent 4 }}
    {{- end }}
    {{- end }}
{{- end -}}
