{{- define "r1.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "r1.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" -}}
{{- end -}}

{{/* Labels of an object: (list $ "component"). */}}
{{- define "r1.labels" -}}
{{- $ := index . 0 -}}
helm.sh/chart: {{ include "r1.chart" $ }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
{{ include "r1.selector" . }}
{{- with $.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What selects its pods: (list $ "component"). Ray's own ray.io/cluster label changes with every upgrade. */}}
{{- define "r1.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ $.Chart.Name }}
app.kubernetes.io/instance: {{ $.Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* Labels of a pod: nothing of the chart's version, or every release of the chart would load the weights anew. */}}
{{- define "r1.podLabels" -}}
{{ include "r1.selector" . }}
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "r1.cpu" -}}
{{- if eq (.Values.plan.fleet.accelerator | default "") "cpu" }}true{{ end -}}
{{- end -}}

{{- define "r1.rdma" -}}
{{- if and .Values.gpu.rdmaResource (not (include "r1.cpu" .)) }}true{{ end -}}
{{- end -}}

{{- define "r1.image" -}}
{{- $tag := .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion (ternary "cpu" "gpu" (eq (include "r1.cpu" .) "true"))) -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{/* A plan's short name for objects and files: what ranks serve, without the name, the aliases and the planner's notes. */}}
{{- define "r1.hash" -}}
{{- if kindIs "map" . -}}
{{- set (omit . "name" "reasons" "memory" "predicted") "model" (omit (.model | default dict) "aliases") | toJson | sha256sum | trunc 10 -}}
{{- else -}}
{{- . | toJson | sha256sum | trunc 10 -}}
{{- end -}}
{{- end -}}

{{/* The plan and those it replaces, each once: a JSON list. */}}
{{- define "r1.plans" -}}
{{- $plans := list -}}{{- $seen := list -}}
{{- range prepend .Values.previousPlans .Values.plan -}}
{{- $hash := include "r1.hash" . -}}
{{- if not (has $hash $seen) -}}{{- $plans = append $plans . -}}{{- $seen = append $seen $hash -}}{{- end -}}
{{- end -}}
{{- $plans | toJson -}}
{{- end -}}

{{- define "r1.planFile" -}}
/etc/r1/plans/{{ include "r1.hash" . }}.yaml
{{- end -}}

{{/* The fleet token as a file: a changed Secret is read without a restart. */}}
{{- define "r1.fleetTokenEnv" -}}
{{- with .Values.fleetToken }}
{{- if .existingSecret }}
- {name: R1_FLEET_TOKEN_FILE, value: /etc/r1/fleet/{{ .key }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "r1.fleetTokenMount" -}}
{{- if .Values.fleetToken.existingSecret }}
- {name: fleet-token, mountPath: /etc/r1/fleet, readOnly: true}
{{- end }}
{{- end -}}

{{- define "r1.fleetTokenVolume" -}}
{{- with .Values.fleetToken.existingSecret }}
- name: fleet-token
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{/* What workers call. */}}
{{- define "r1.attach" -}}
{{- .Values.router.attach | default (printf "%s-attach.%s.svc.%s:%d" (include "r1.name" .) .Release.Namespace .Values.clusterDomain (int .Values.router.ports.grpc)) -}}
{{- end -}}

{{- define "r1.serviceAccount" -}}
{{- $ := index . 0 -}}{{- $kind := index . 1 -}}
{{- index $.Values.serviceAccount $kind | default (ternary (printf "%s-%s" (include "r1.name" $) $kind) "default" $.Values.serviceAccount.create) -}}
{{- end -}}

{{/* The weights' volume: (list $ "router"|"ray"); routers only read small files. */}}
{{- define "r1.weightsVolume" -}}
{{- $ := index . 0 -}}{{- $w := $.Values.weights -}}
{{- if eq $w.type "pvc" }}
- name: weights
  persistentVolumeClaim:
    claimName: {{ $w.pvc.existingClaim | default (printf "%s-weights" (include "r1.name" $)) }}
    readOnly: true
{{- else if eq $w.type "hostPath" }}
- name: weights
  hostPath: {path: {{ $w.hostPath | quote }}, type: Directory}
{{- else if and (eq $w.type "objectStore") (eq (index . 1) "router") }}
- name: weights
  emptyDir: {sizeLimit: 1Gi}
{{- end }}
{{- end -}}

{{- define "r1.weightsMount" -}}
{{- $ := index . 0 -}}{{- $type := $.Values.weights.type -}}
{{- if or (has $type (list "pvc" "hostPath")) (and (eq $type "objectStore") (eq (index . 1) "router")) }}
- {name: weights, mountPath: {{ $.Values.weights.mountPath | quote }}, readOnly: true}
{{- end }}
{{- end -}}

{{/* The folder of the checkpoint below the mount. */}}
{{- define "r1.checkpoint" -}}
{{- $name := .Values.plan.model.checkpoint -}}
{{- ternary $name (printf "%s/%s" (trimSuffix "/" .Values.weights.mountPath) $name) (hasPrefix "/" $name) -}}
{{- end -}}

{{/* Arguments of `r1 fetch`, and its volume of expected checksums. */}}
{{- define "r1.fetchArguments" -}}
- fetch
- {{ .Values.weights.fetch.url | quote }}
- {{ include "r1.checkpoint" . | quote }}
- --sums
- /etc/r1/sums/SHA256SUMS
{{- end -}}

{{- define "r1.fetchEnv" -}}
- {name: HOME, value: /tmp}
{{- with .Values.weights.fetch.existingSecret }}
- name: R1_FETCH_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: token}}
{{- end }}
{{- end -}}

{{/* Waits until the Job has filled the claim: a pod that starts sooner would find half a checkpoint. */}}
{{- define "r1.fetchInit" -}}
{{- $ := index . 0 -}}
{{- if $.Values.weights.fetch.url }}
- name: weights
  image: {{ include "r1.image" $ }}
  imagePullPolicy: {{ $.Values.image.pullPolicy }}
  {{- include "r1.containerSecurity" $ | nindent 2 }}
  command: [r1]
  args:
    {{- include "r1.fetchArguments" $ | nindent 4 }}
    {{- if eq $.Values.weights.type "pvc" }}
    - --wait
    {{- end }}
  env:
    {{- include "r1.fetchEnv" $ | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 256Mi}
    limits: {memory: 512Mi}
  volumeMounts:
    - {name: sums, mountPath: /etc/r1/sums, readOnly: true}
    - {name: tmp, mountPath: /tmp}
    - {name: weights, mountPath: {{ $.Values.weights.mountPath | quote }}{{ if eq $.Values.weights.type "pvc" }}, readOnly: true{{ end }}}
{{- end }}
{{- end -}}

{{- define "r1.sumsVolume" -}}
{{- if .Values.weights.fetch.url }}
- name: sums
  configMap: {name: {{ include "r1.name" . }}-sums}
{{- end }}
{{- end -}}

{{- define "r1.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  privileged: false
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Where a pod may run and what it is called: (list $ $.Values.router). */}}
{{- define "r1.placement" -}}
{{- $ := index . 0 -}}{{- $pod := index . 1 -}}
{{- with $.Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* A kind that an add-on brings: (list $ "group/version/Kind" "what to do"). A cluster that lists kinds lists this one. */}}
{{- define "r1.requireKind" -}}
{{- $ := index . 0 -}}
{{- if and ($.Capabilities.APIVersions.Has "apps/v1/Deployment") (not ($.Capabilities.APIVersions.Has (index . 1))) -}}
{{- fail (printf "the cluster has no %s: %s" (index . 1) (index . 2)) -}}
{{- end -}}
{{- end -}}

{{/* Each of several router processes has a port of its own for workers, after the gRPC port. */}}
{{- define "r1.fleetPorts" -}}
{{- $r := .Values.router -}}
{{- if gt (int $r.processes) 1 -}}
- {port: {{ add1 $r.ports.grpc | int }}, endPort: {{ add $r.ports.grpc $r.processes | int }}}
{{- end -}}
{{- end -}}
