{{- /* Names, labels and the pieces that several objects share. */ -}}

{{- define "rareclass.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "rareclass.model" -}}
{{- required "config.name is missing: give the rareclass configuration under 'config' (name, data.path and data.target at least)" .Values.config.name -}}
{{- end -}}

{{- define "rareclass.selector" -}}
app.kubernetes.io/name: rareclass
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "rareclass.labels" -}}
{{ include "rareclass.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
rareclass.io/model: {{ include "rareclass.model" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* include "rareclass.image" (list . "pipeline") */ -}}
{{- define "rareclass.image" -}}
{{- $root := index . 0 -}}
{{- $image := $root.Values.image -}}
{{- $digest := index $image.digests (index . 1) -}}
{{- if and $digest (eq $image.digests.pipeline $image.digests.serving) }}{{ fail "image.digests.pipeline and image.digests.serving are the same: they are two images" }}{{ end -}}
{{- if and $digest (not (regexMatch "^sha256:[0-9a-f]{64}$" $digest)) }}{{ fail (printf "image.digests.%s is no digest: it is sha256: and 64 hexadecimal digits" (index . 1)) }}{{ end -}}
{{- with $image.registry }}{{ . }}/{{ end }}{{ index $image (index . 1) }}:{{ default $root.Chart.AppVersion $image.tag }}{{ with $digest }}@{{ . }}{{ end }}
{{- end -}}

{{- define "rareclass.pull" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{ toYaml . | indent 2 }}
{{- end }}
{{- end -}}

{{- /* What restricted Pod Security asks for, on the container, because Seldon 1 drops the pod's securityContext. */ -}}
{{- define "rareclass.containerSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- /* Where a pod runs, by the values of its component, else those of every pod:
include "rareclass.scheduling" (dict "root" . "component" "serving" "own" .Values.serving "default" AFFINITY) */ -}}
{{- define "rareclass.scheduling" -}}
{{- $pods := .root.Values.pods -}}
{{- $own := default dict .own -}}
{{- with default $pods.nodeSelector $own.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with default $pods.tolerations $own.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with default (default .default $pods.affinity) $own.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pods.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if $pods.topologySpread }}
{{- $labels := include "rareclass.selector" .root | fromYaml | merge (dict "app.kubernetes.io/component" .component) }}
topologySpreadConstraints:
{{- range $pods.topologySpread }}
  - {{- toYaml (merge (deepCopy .) (dict "labelSelector" (dict "matchLabels" $labels))) | nindent 4 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "rareclass.podLabels" -}}
{{- with .Values.pods.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* What every container writes to and trusts. */ -}}
{{- define "rareclass.commonMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.caBundle.configMap }}
- {name: ca-bundle, mountPath: /etc/rareclass/ca, readOnly: true}
{{- end }}
{{- end -}}

{{- define "rareclass.commonVolumes" -}}
- {name: tmp, emptyDir: {}}
{{- with .Values.caBundle.configMap }}
- name: ca-bundle
  configMap: {name: {{ . }}}
{{- end }}
{{- end -}}

{{- /* OpenSSL and httpx, requests, boto, curl and libpq each have a variable of their own. */ -}}
{{- define "rareclass.caEnv" -}}
{{- if .Values.caBundle.configMap }}
{{- $file := printf "/etc/rareclass/ca/%s" .Values.caBundle.key }}
{{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "AWS_CA_BUNDLE" "CURL_CA_BUNDLE" "PGSSLROOTCERT" }}
- {name: {{ . }}, value: {{ $file }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "rareclass.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- /* Is the PostgreSQL of the release used? */ -}}
{{- define "rareclass.embeddedStore" -}}
{{- if and .Values.postgresql.enabled (not .Values.store.url) (not .Values.store.existingSecret.name) }}true{{ end -}}
{{- end -}}

{{- define "rareclass.embeddedMlflow" -}}
{{- if and .Values.mlflow.enabled (not .Values.tracking.uri) }}true{{ end -}}
{{- end -}}

{{- define "rareclass.embeddedMlflowDatabase" -}}
{{- if and (include "rareclass.embeddedMlflow" .) (not .Values.mlflow.databaseUrl) (not .Values.mlflow.databaseSecret.name) }}true{{ end -}}
{{- end -}}

{{- define "rareclass.postgresql" -}}
{{- if and .Values.postgresql.enabled (or (include "rareclass.embeddedStore" .) (include "rareclass.embeddedMlflowDatabase" .)) }}true{{ end -}}
{{- end -}}

{{- define "rareclass.trackingUri" -}}
{{- if .Values.tracking.uri -}}{{ .Values.tracking.uri }}
{{- else if .Values.mlflow.enabled -}}http://{{ include "rareclass.fullname" . }}-mlflow:5000
{{- else -}}{{ fail "no MLflow: set tracking.uri to the address of a server, or mlflow.enabled to true" }}
{{- end -}}
{{- end -}}

{{- /* Secret with the password of the embedded PostgreSQL. The chart invents none: a tool that renders it again would change it. */ -}}
{{- define "rareclass.postgresqlSecret" -}}
{{- $name := include "rareclass.fullname" . -}}
{{- if .Values.postgresql.existingSecret.name -}}{{ .Values.postgresql.existingSecret.name }}
{{- else if .Values.postgresql.password -}}{{ $name }}-postgresql
{{- else -}}
{{- fail (printf "the embedded PostgreSQL has no password. Make one with: kubectl -n %s create secret generic %s-database --from-literal=password=$(openssl rand -hex 16), then set postgresql.existingSecret.name to %s-database" .Release.Namespace $name $name) }}
{{- end -}}
{{- end -}}

{{- define "rareclass.postgresqlKey" -}}
{{- if .Values.postgresql.existingSecret.name }}{{ .Values.postgresql.existingSecret.key }}{{ else }}password{{ end -}}
{{- end -}}

{{- /* libpq reads the password from here, so that no address holds it. */ -}}
{{- define "rareclass.postgresqlPassword" -}}
- name: PGPASSWORD
  valueFrom: {secretKeyRef: {name: {{ include "rareclass.postgresqlSecret" . }}, key: {{ include "rareclass.postgresqlKey" . }}}}
{{- end -}}

{{- /* Address of a database of the embedded PostgreSQL, as every namespace of the cluster says it. */ -}}
{{- define "rareclass.postgresqlUrl" -}}
{{- $root := index . 0 -}}
postgresql+psycopg://rareclass@{{ include "rareclass.fullname" $root }}-postgresql.{{ $root.Release.Namespace }}:5432/{{ index . 1 }}
{{- end -}}

{{- define "rareclass.storeEnv" -}}
{{- if include "rareclass.embeddedStore" . }}
- {name: RARECLASS_STORE_URL, value: {{ include "rareclass.postgresqlUrl" (list . "rareclass") }}}
{{ include "rareclass.postgresqlPassword" . }}
{{- else if .Values.store.existingSecret.name }}
- name: RARECLASS_STORE_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.store.existingSecret.name }}, key: {{ .Values.store.existingSecret.key }}}}
{{- else if .Values.store.url }}
- name: RARECLASS_STORE_URL
  valueFrom: {secretKeyRef: {name: {{ include "rareclass.fullname" . }}-store, key: url}}
{{- else }}
{{- fail "no store: set store.existingSecret.name or store.url, or postgresql.enabled to true" }}
{{- end }}
{{- include "rareclass.mlflowToken" . }}
{{- include "rareclass.caEnv" . }}
{{- end -}}

{{- define "rareclass.s3Env" -}}
{{- with .Values.s3.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
- {name: MLFLOW_S3_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
- {name: AWS_DEFAULT_REGION, value: {{ .Values.s3.region | quote }}}
{{- with .Values.s3.existingSecret.name }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_ACCESS_KEY_ID}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SECRET_ACCESS_KEY}}
{{- end }}
{{- end -}}

{{- define "rareclass.trackingEnvFrom" -}}
{{- with .Values.tracking.existingSecret.name }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end -}}

{{- define "rareclass.configChecksum" -}}
{{ include (print $.Template.BasePath "/configmap.yaml") . | sha256sum }}
{{- end -}}

{{- /* Bearer token of a Secret as an environment variable: include "rareclass.tokenEnv" (list NAME SECRET) */ -}}
{{- define "rareclass.tokenEnv" -}}
- name: {{ index . 0 }}
  valueFrom: {secretKeyRef: {name: {{ index . 1 }}, key: token}}
{{- end -}}

{{- /* The pod of a Job of the release: include "rareclass.jobPod" (dict "root" . "name" N "command" LIST "resources" R "volumes" LIST "mounts" LIST) */ -}}
{{- define "rareclass.jobPod" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "rareclass.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
    rareclass.io/network: jobs
    {{- include "rareclass.podLabels" $root | nindent 4 }}
spec:
  restartPolicy: {{ default "Never" .restartPolicy }}
  serviceAccountName: {{ include "rareclass.fullname" $root }}-jobs
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- include "rareclass.pull" $root | nindent 2 }}
  {{- include "rareclass.scheduling" (dict "root" $root "component" .name) | nindent 2 }}
  securityContext: {{- include "rareclass.podSecurity" $root | nindent 4 }}
  {{- if .awaitMlflow }}
  initContainers:
    - name: await-mlflow
      image: {{ include "rareclass.image" (list $root "pipeline") }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [python, -c]
      args:
        - |
          {{- $root.Files.Get "files/await.py" | nindent 10 }}
      env:
        - {name: URL, value: {{ printf "%s/health" (include "rareclass.trackingUri" $root) | quote }}}
      securityContext: {{- include "rareclass.containerSecurity" $root | nindent 8 }}
      resources: {{- toYaml .resources | nindent 8 }}
  {{- end }}
  containers:
    - name: {{ .name }}
      image: {{ include "rareclass.image" (list $root "pipeline") }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: {{ toJson .args }}
      {{- include "rareclass.trackingEnvFrom" $root | nindent 6 }}
      env:
        {{- include "rareclass.storeEnv" $root | nindent 8 }}
        {{- include "rareclass.s3Env" $root | nindent 8 }}
      securityContext: {{- include "rareclass.containerSecurity" $root | nindent 8 }}
      resources: {{- toYaml .resources | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /config, readOnly: true}
        {{- include "rareclass.commonMounts" $root | nindent 8 }}
        {{- with .mounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ include "rareclass.fullname" $root }}-config}
    {{- include "rareclass.commonVolumes" $root | nindent 4 }}
    {{- with .volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- /* The volume of a spool of its own, of each pod: given the values of the spool. */}}
{{- define "rareclass.spoolClaim" -}}
- metadata: {name: spool}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .storageClass }}
    storageClassName: {{ . }}
    {{- end }}
    resources: {requests: {storage: {{ .size }}}}
{{- end -}}

{{- /* The volume of a spool that ends with its pod. */}}
{{- define "rareclass.spoolVolume" -}}
- name: spool
  emptyDir: {sizeLimit: {{ .size }}}
{{- end -}}
