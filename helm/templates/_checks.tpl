{{/*
What one value says of another. Every message begins with the key at fault and ends with what to do: better here than in
a crash loop. Shapes and unknown keys are values.schema.json's part.
*/}}
{{- define "r1.check" -}}
{{- $v := .Values -}}
{{- if not $v.plan -}}
{{- fail "plan: give one: `r1 plan … --emit helm-values > plan-values.yaml`, then -f plan-values.yaml, or -f helm/values-nano.yaml for a first try on any cluster" -}}
{{- end -}}
{{- $plan := $v.plan -}}
{{- $facts := .Files.Get "files/facts.json" | fromJson -}}
{{- include "r1.requireKind" (list . "ray.io/v1/RayService" "install KubeRay 1.6 or newer first: helm install kuberay-operator kuberay-operator --repo https://ray-project.github.io/kuberay-helm --version 1.7.0") -}}

{{- if and $v.model (ne $v.model $plan.model.name) -}}
{{- fail (printf "plan.model.name: the plan is for %s and this release for %s (model): use a plan for %s, or change model" $plan.model.name $v.model $v.model) -}}
{{- end -}}
{{- range $previous := $v.previousPlans -}}
{{- if ne .model.name $plan.model.name -}}
{{- range prepend (.model.aliases | default list) .model.name -}}
{{- if has . (prepend ($plan.model.aliases | default list) $plan.model.name) -}}
{{- fail (printf "previousPlans: %s would name both %s and %s: take it out of one plan's model.aliases" . $previous.model.name $plan.model.name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq .model.name $plan.model.name) (ne .model.checkpoint $plan.model.checkpoint) -}}
{{- fail (printf "previousPlans: %s serves %s from another checkpoint than plan: give one of them another model.name" .name .model.name) -}}
{{- end -}}
{{- end -}}

{{- $perNode := int ($plan.fleet.accelerators_per_node | default 8) -}}
{{- if and $v.gpu.type (ne $v.gpu.type $plan.fleet.accelerator) -}}
{{- fail (printf "gpu.type: %s, and the plan is for %s: plan again for %s, or correct gpu.type" $v.gpu.type $plan.fleet.accelerator $v.gpu.type) -}}
{{- end -}}
{{- if and $v.gpu.perNode (ne (int $v.gpu.perNode) $perNode) -}}
{{- fail (printf "gpu.perNode: %d, and plan.fleet.accelerators_per_node is %d: they must agree" (int $v.gpu.perNode) $perNode) -}}
{{- end -}}
{{- with index $facts.gpusPerNode $plan.fleet.accelerator -}}
{{- if gt $perNode (int .) -}}
{{- fail (printf "plan.fleet.accelerators_per_node: %d, and a node of %s has %d: plan for the nodes you have" $perNode $plan.fleet.accelerator (int .)) -}}
{{- end -}}
{{- end -}}

{{- $model := index $facts.models $plan.model.name | default (index $facts.models (lower (base $plan.model.checkpoint))) -}}
{{- $domain := max $perNode (int ($plan.fleet.nvlink_domain | default 0)) | int -}}
{{- $nodes := 0 -}}
{{- range $i, $pool := include "r1.pools" . | fromJsonArray -}}
{{- $key := printf "plan.pools[%d].layout" $i -}}
{{- if ne $pool.role "unified" -}}
{{- fail (printf "plan.pools[%d].role: %s; these workers do not hand over KV: plan with `r1 plan --pools unified`" $i $pool.role) -}}
{{- end -}}
{{- if gt (int $pool.tp) $domain -}}
{{- fail (printf "%s.tensor_parallel_size: %d, more than the %d accelerators of a node (or of plan.fleet.nvlink_domain): tensor parallelism stays there" $key (int $pool.tp) $domain) -}}
{{- end -}}
{{- if and $v.ray.autoscaler.enabled (lt (int $v.ray.autoscaler.maxGangs) (int $pool.gangs)) -}}
{{- fail (printf "ray.autoscaler.maxGangs: %d, below the plan's %d gangs of pool %s" (int $v.ray.autoscaler.maxGangs) (int $pool.gangs) $pool.name) -}}
{{- end -}}
{{- if not (has (int $pool.ep) (list 1 (mul $pool.tp $pool.dp | int))) -}}
{{- fail (printf "%s.expert_parallel_size: %d; use 1 or tensor x data = %d" $key (int $pool.ep) (mul $pool.tp $pool.dp)) -}}
{{- end -}}
{{- if $model -}}
{{- if mod (int $model.heads) (int $pool.tp) -}}
{{- fail (printf "%s.tensor_parallel_size: %d does not divide the %d attention heads of %s" $key (int $pool.tp) (int $model.heads) $plan.model.name) -}}
{{- end -}}
{{- if and (gt (int $pool.ep) 1) (eq (int $model.experts) 0) -}}
{{- fail (printf "%s.expert_parallel_size: %d, and %s has no experts: use 1" $key (int $pool.ep) $plan.model.name) -}}
{{- end -}}
{{- if and (gt (int $pool.ep) 1) (mod (int $model.experts) (int $pool.ep)) -}}
{{- fail (printf "%s.expert_parallel_size: %d does not divide the %d experts of %s" $key (int $pool.ep) (int $model.experts) $plan.model.name) -}}
{{- end -}}
{{- end -}}
{{- if and (gt (int $pool.accelerators) $perNode) (mod $pool.accelerators $perNode) -}}
{{- fail (printf "%s: a gang of %d accelerators does not fill whole nodes of %d: change the layout or gpu.perNode" $key (int $pool.accelerators) $perNode) -}}
{{- end -}}
{{- $nodes = add $nodes (divf (mul $pool.gangs $pool.accelerators) $perNode | ceil) -}}
{{- end -}}
{{- if and $v.gpu.nodes (gt (int $nodes) (int $v.gpu.nodes)) -}}
{{- fail (printf "gpu.nodes: %d, and the plan's gangs take %d nodes of %d accelerators: plan for the nodes you have" (int $v.gpu.nodes) (int $nodes) $perNode) -}}
{{- end -}}

{{- $w := $v.weights -}}
{{- $builtin := hasPrefix "builtin:" $plan.model.checkpoint -}}
{{- if and $builtin (ne $w.type "builtin") -}}
{{- fail (printf "weights.type: %s, and %s is in the image: use builtin" $w.type $plan.model.checkpoint) -}}
{{- else if and (not $builtin) (eq $w.type "builtin") -}}
{{- fail (printf "weights.type: say where %s lies: pvc, hostPath or objectStore" $plan.model.checkpoint) -}}
{{- end -}}
{{- if and (hasPrefix "/" $plan.model.checkpoint) (not (hasPrefix (printf "%s/" (trimSuffix "/" $w.mountPath)) (printf "%s/" $plan.model.checkpoint))) -}}
{{- fail (printf "plan.model.checkpoint: %s is not below weights.mountPath %s, where the weights are mounted" $plan.model.checkpoint $w.mountPath) -}}
{{- end -}}
{{- if and (eq $w.type "pvc") (not $w.pvc.existingClaim) (not $w.pvc.size) -}}
{{- fail "weights.pvc.size: give existingClaim, or a size (R1: 720Gi) and weights.fetch to fill the new claim" -}}
{{- end -}}
{{- if and (eq $w.type "pvc") (not $w.pvc.existingClaim) (not $w.fetch.url) -}}
{{- fail "weights.fetch.url: nothing would fill the new claim: give a URL, or weights.pvc.existingClaim" -}}
{{- end -}}
{{- if and (eq $w.type "hostPath") (not $w.hostPath) -}}
{{- fail "weights.hostPath: name the folder of the nodes that has the checkpoint" -}}
{{- end -}}
{{- if and (eq $w.type "objectStore") (or (not $w.objectStore.uri) (not $w.fetch.url)) -}}
{{- fail (printf "weights.%s: an object store needs a uri for the workers and fetch.url for the routers' small files" (ternary "objectStore.uri" "fetch.url" (not $w.objectStore.uri))) -}}
{{- end -}}
{{- if and $w.fetch.url (has $w.type (list "builtin" "hostPath")) -}}
{{- fail (printf "weights.fetch.url: fetching fills a claim, and weights.type is %s: use pvc" $w.type) -}}
{{- end -}}
{{- if and $w.fetch.url (not $w.fetch.files) -}}
{{- fail "weights.fetch.files: list each file with its sha256 (`sha256sum *`): nothing unchecked is served" -}}
{{- end -}}

{{- $a := $v.router.autoscaling -}}
{{- if and (ne $a.type "none") (gt (int $a.minReplicas) (int $a.maxReplicas)) -}}
{{- fail (printf "router.autoscaling.maxReplicas: %d is below minReplicas %d" (int $a.maxReplicas) (int $a.minReplicas)) -}}
{{- end -}}
{{- if and (eq $a.type "keda") (not $a.prometheusUrl) -}}
{{- fail "router.autoscaling.prometheusUrl: KEDA asks Prometheus: give its address, such as http://prometheus.monitoring:9090" -}}
{{- end -}}
{{- if eq (int $v.router.ports.http) (int $v.router.ports.grpc) -}}
{{- fail (printf "router.ports.grpc: %d is the HTTP port too: they must differ" (int $v.router.ports.grpc)) -}}
{{- end -}}

{{- $ray := $v.ray -}}
{{- if and (eq $ray.gcsFaultTolerance.backend "redis") (not $ray.gcsFaultTolerance.redisAddress) -}}
{{- fail "ray.gcsFaultTolerance.redisAddress: give the Redis that keeps the cluster's state, such as redis:6379" -}}
{{- end -}}
{{- if and (ne $ray.scheduling.type "none") (not $ray.scheduling.queue) -}}
{{- fail (printf "ray.scheduling.queue: %s places by queue: name one" $ray.scheduling.type) -}}
{{- end -}}
{{- if and (eq $ray.scheduling.type "kueue") $ray.autoscaler.enabled -}}
{{- fail "ray.autoscaler.enabled: Kueue admits a cluster of a fixed size: turn one of them off" -}}
{{- end -}}

{{- if not (or $v.networkPolicy.enabled $v.fleetToken.existingSecret) -}}
{{- fail "fleetToken.existingSecret: without network policies whoever reaches a router can attach as a worker and be given prompts: name a Secret with a fleet token, or set networkPolicy.enabled" -}}
{{- end -}}

{{- $outside := ternary "ingress.enabled" (ternary "gateway.enabled" "" $v.gateway.enabled) $v.ingress.enabled -}}
{{- if ne $v.router.service.type "ClusterIP" -}}
{{- $outside = printf "router.service.type %s" $v.router.service.type -}}
{{- if not $v.fleetToken.existingSecret -}}
{{- fail (printf "fleetToken.existingSecret: %s opens the port at which workers attach and are given prompts: name a Secret with a fleet token, or use ClusterIP behind ingress or gateway, which open the API alone" $outside) -}}
{{- end -}}
{{- end -}}
{{- if and $outside (not $v.tenants.existingSecret) (not $v.tenants.anonymous) -}}
{{- fail (printf "tenants.existingSecret: %s lets the outside in: name a Secret with a tenants file (docs/routing.md), or set tenants.anonymous" $outside) -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.host: name the host it answers to" -}}
{{- end -}}
{{- if and $v.gateway.enabled (not $v.gateway.parentRefs) -}}
{{- fail "gateway.parentRefs: name the Gateway the routes belong to" -}}
{{- end -}}
{{- if and $v.gateway.enabled $v.gateway.grpcHostnames -}}
{{- if not $v.gateway.hostnames -}}
{{- fail "gateway.hostnames: a Gateway gives a host to HTTP routes or to gRPC routes: name the HTTP ones, apart from grpcHostnames" -}}
{{- end -}}
{{- range $v.gateway.grpcHostnames -}}
{{- if has . $v.gateway.hostnames -}}
{{- fail (printf "gateway.grpcHostnames: %s is in gateway.hostnames too: a Gateway gives a host to HTTP routes or to gRPC routes" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.test.apiKey.name (not $v.test.apiKey.key) -}}
{{- fail (printf "test.apiKey.key: name the key within the Secret %s" $v.test.apiKey.name) -}}
{{- end -}}
{{- include "r1.checkReplaced" . -}}
{{- end -}}

{{/* On an upgrade: the routers would refuse the running workers. Only a real cluster can be asked (`lookup`). */}}
{{- define "r1.checkReplaced" -}}
{{- if and .Release.IsUpgrade (not .Values.ray.upgrade.allowPlanReplacement) -}}
{{- $known := list (include "r1.hash" .Values.plan) -}}
{{- range .Values.previousPlans -}}{{- $known = append $known (include "r1.hash" .) -}}{{- end -}}
{{- $running := lookup "ray.io/v1" "RayService" .Release.Namespace (include "r1.name" .) -}}
{{- $hash := dig "metadata" "annotations" "r1-serve/plan" "" $running -}}
{{- if and $hash (not (has $hash $known)) -}}
{{- fail (printf "previousPlans: the running workers serve plan %s (%s), which the routers would refuse: add it to previousPlans until the new ones are ready, or set ray.upgrade.allowPlanReplacement" (dig "metadata" "annotations" "r1-serve/plan-name" "" $running) $hash) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The pools with all defaults: a JSON list of {name, gangs, tp, dp, ep, accelerators, hosts, perPod}. */}}
{{- define "r1.pools" -}}
{{- $perNode := int (.Values.plan.fleet.accelerators_per_node | default 8) -}}
{{- $pools := list -}}
{{- range .Values.plan.pools | default (list dict) -}}
{{- $layout := .layout | default dict -}}
{{- $tp := int ($layout.tensor_parallel_size | default 1) -}}
{{- $dp := int ($layout.data_parallel_size | default 1) -}}
{{- $all := mul $tp $dp ($layout.pipeline_parallel_size | default 1) | int -}}
{{- $hosts := ternary (div $all $perNode | int) 1 (gt $all $perNode) -}}
{{- $pools = append $pools (dict "name" (.name | default "main") "role" (.role | default "unified") "gangs" (int (.gangs | default 1)) "tp" $tp "dp" $dp
    "ep" (int ($layout.expert_parallel_size | default 1)) "accelerators" $all "hosts" $hosts "perPod" (div $all $hosts | int)) -}}
{{- end -}}
{{- $pools | toJson -}}
{{- end -}}
