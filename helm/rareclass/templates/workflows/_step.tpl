{{- /* One step of the workflow, a command of the image: include "rareclass.step" (dict "root" . "name" N "args" LIST "deadline" SECONDS) */ -}}
{{- define "rareclass.step" -}}
{{- $root := .root -}}
name: {{ .name }}
activeDeadlineSeconds: {{ .deadline }}
metadata:
  labels: {{- include "rareclass.workflowLabels" $root | nindent 4 }}
# A lost node or a deleted pod is tried again; a command that says no is not.
retryStrategy: {limit: 5, retryPolicy: OnError, backoff: {duration: 5s, factor: 2, maxDuration: 5m}}
container:
  image: {{ include "rareclass.image" (list $root "pipeline") }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  command: {{ default (list "rareclass") .command | toJson }}
  args: {{- toYaml .args | nindent 4 }}
  {{- include "rareclass.trackingEnvFrom" $root | nindent 2 }}
  env:
    {{- include "rareclass.storeEnv" $root | nindent 4 }}
    # the network's rules of a new pod take a moment; until then its connections are refused
    - {name: RARECLASS_STORE_WAIT, value: 2m}
    {{- include "rareclass.s3Env" $root | nindent 4 }}
    {{- with $root.Values.serving.tokenSecret }}
    {{- include "rareclass.tokenEnv" (list (default "RARECLASS_SERVE_TOKEN" (dig "serve" "token_env" "" $root.Values.config)) .) | nindent 4 }}
    {{- end }}
  securityContext: {{- include "rareclass.containerSecurity" $root | nindent 4 }}
  resources: {{- toYaml $root.Values.retrain.resources | nindent 4 }}
  volumeMounts:
    - {name: config, mountPath: /config, readOnly: true}
    {{- include "rareclass.commonMounts" $root | nindent 4 }}
    {{- if include "rareclass.kubeflowToken" $root }}
    - {name: kubeflow-token, mountPath: /var/run/secrets/kubeflow, readOnly: true}
    {{- end }}
{{- end -}}

{{- /* Does a person approve versions? */ -}}
{{- define "rareclass.manual" -}}
{{- if eq (dig "promotion" "mode" "immediate" .Values.config) "manual" }}true{{ end -}}
{{- end -}}

{{- define "rareclass.workflowLabels" -}}
{{- include "rareclass.labels" . }}
app.kubernetes.io/component: workflow
{{- include "rareclass.podLabels" . }}
{{- end -}}

{{- /* Name of the object that serves, as the deploy step patches it. */ -}}
{{- define "rareclass.servingKind" -}}
{{- $backend := include "rareclass.backend" . -}}
{{- if ne $backend "deployment" }}{{ $backend }}{{ else if .Values.serving.spool.persistent }}statefulset{{ else }}deployment{{ end -}}
{{- end -}}
{{- define "rareclass.servingObject" -}}
{{ include "rareclass.fullname" . }}{{ if eq (include "rareclass.backend" .) "deployment" }}-serving{{ end }}
{{- end -}}

{{- /* Secret in the namespace of the pipeline's steps with what opens the store; the release's own where they run beside it. */ -}}
{{- define "rareclass.pipelineSecret" -}}
{{- $kubeflow := .Values.retrain.kubeflow -}}
{{- $embedded := include "rareclass.embeddedStore" . -}}
{{- if $kubeflow.existingSecret -}}
{{- dict "name" $kubeflow.existingSecret "env" (ternary (dict "PGPASSWORD" "password") (dict "RARECLASS_STORE_URL" "url") (not (empty $embedded))) | toJson -}}
{{- else if ne $kubeflow.namespace .Release.Namespace -}}
{{- fail (printf "the pipeline's steps run in namespace %s and cannot read the Secrets of %s, and the chart copies none there: whoever may make a pod there could read it. Set retrain.kubeflow.existingSecret to a Secret there (key %s), retrain.kubeflow.namespace to %s where Kubeflow has users, or retrain.runner to pod" $kubeflow.namespace .Release.Namespace (ternary "password: that of PostgreSQL" "url: the store's URL" (not (empty $embedded))) .Release.Namespace) }}
{{- else if $embedded -}}
{{- dict "name" (include "rareclass.postgresqlSecret" .) "env" (dict "PGPASSWORD" (include "rareclass.postgresqlKey" .)) | toJson -}}
{{- else if .Values.store.existingSecret.name -}}
{{- dict "name" .Values.store.existingSecret.name "env" (dict "RARECLASS_STORE_URL" .Values.store.existingSecret.key) | toJson -}}
{{- else -}}
{{- dict "name" (printf "%s-store" (include "rareclass.fullname" .)) "env" (dict "RARECLASS_STORE_URL" "url") | toJson -}}
{{- end -}}
{{- end -}}

{{- /* The section `cluster` of the configuration, as the steps of the pipeline need it. */ -}}
{{- define "rareclass.clusterSettings" -}}
{{- $kubeflow := .Values.retrain.kubeflow -}}
{{- $tracking := include "rareclass.trackingUri" . -}}
{{- if include "rareclass.embeddedMlflow" . }}{{ $tracking = printf "http://%s-mlflow.%s:5000" (include "rareclass.fullname" .) .Release.Namespace }}{{ end -}}
{{- $env := dict "RARECLASS_TRACKING_URI" $tracking "AWS_DEFAULT_REGION" .Values.s3.region -}}
{{- with .Values.s3.endpoint }}{{ $_ := set $env "AWS_ENDPOINT_URL" . }}{{ end -}}
{{- if include "rareclass.embeddedStore" . }}{{ $_ := set $env "RARECLASS_STORE_URL" (include "rareclass.postgresqlUrl" (list . "rareclass")) }}{{ end -}}
{{- $own := include "rareclass.pipelineSecret" . | fromJson -}}
{{- $secrets := list $own -}}
{{- if and (include "rareclass.embeddedMlflow" .) .Values.mlflow.tokenSecret -}}
{{- $secrets = append $secrets (dict "name" (default .Values.mlflow.tokenSecret $kubeflow.existingSecret) "env" (dict "MLFLOW_TRACKING_TOKEN" "MLFLOW_TRACKING_TOKEN")) -}}
{{- end -}}
{{- $secrets = concat $secrets $kubeflow.secrets -}}
{{- $settings := dict "host" $kubeflow.host "image" (include "rareclass.image" (list . "pipeline")) "env" (mustMergeOverwrite $env $kubeflow.env) "secrets" $secrets -}}
{{- if $kubeflow.multiUser }}{{ $_ := set $settings "namespace" $kubeflow.namespace }}{{ $_ := set $settings "token_file" "/var/run/secrets/kubeflow/token" }}{{ end -}}
{{- with $kubeflow.account }}{{ $_ := set $settings "account" . }}{{ end -}}
{{- with $kubeflow.runAsUser }}{{ $_ := set $settings "run_as_user" (int .) }}{{ end -}}
{{- $settings | toJson -}}
{{- end -}}

{{- define "rareclass.kubeflowToken" -}}
{{- if and (eq .Values.retrain.runner "kubeflow") .Values.retrain.kubeflow.multiUser }}true{{ end -}}
{{- end -}}
