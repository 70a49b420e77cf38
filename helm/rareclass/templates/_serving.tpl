{{- /* What runs the pod: as the values say, else what the cluster has. Seldon first, so that a release stays where it is when KServe comes beside it. */ -}}
{{- define "rareclass.backend" -}}
{{- if .Values.serving.backend -}}{{ .Values.serving.backend }}
{{- else if .Values.serving.spool.persistent -}}deployment
{{- else if .Capabilities.APIVersions.Has "machinelearning.seldon.io/v1" -}}seldon
{{- else if .Capabilities.APIVersions.Has "serving.kserve.io/v1beta1" -}}kserve
{{- else -}}deployment
{{- end -}}
{{- end -}}

{{- /* The pod that serves, the same behind Seldon, KServe and in a Deployment. Seldon adds ports, MLSERVER_* variables and a preStop. */ -}}
{{- define "rareclass.servingPod" -}}
{{- $name := include "rareclass.fullname" . -}}
{{- $serving := .Values.serving -}}
serviceAccountName: {{ $name }}-serving
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ $serving.terminationGracePeriodSeconds }}
{{- include "rareclass.pull" . }}
{{- $labels := include "rareclass.selector" . | fromYaml | merge (dict "app.kubernetes.io/component" "serving") }}
{{- $apart := dict "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 1 "podAffinityTerm" (dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $labels))))) }}
{{- include "rareclass.scheduling" (dict "root" . "component" "serving" "own" $serving "default" $apart) }}
initContainers:
  - name: await-champion
    image: {{ include "rareclass.image" (list . "serving") }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args: [serve, -c, /config/config.yaml, --await-champion, {{ $serving.waitSeconds | quote }}]
    {{- include "rareclass.trackingEnvFrom" . | nindent 4 }}
    env: {{- include "rareclass.servingEnv" . | nindent 6 }}
    securityContext: {{- include "rareclass.containerSecurity" . | nindent 6 }}
    resources: {{- toYaml $serving.resources | nindent 6 }}
    volumeMounts:
      - {name: config, mountPath: /config, readOnly: true}
      {{- include "rareclass.commonMounts" . | nindent 6 }}
containers:
  - name: {{ eq (include "rareclass.backend" .) "kserve" | ternary "kserve-container" (include "rareclass.model" .) }}
    image: {{ include "rareclass.image" (list . "serving") }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args: [serve, -c, /config/config.yaml]
    {{- include "rareclass.trackingEnvFrom" . | nindent 4 }}
    env: {{- include "rareclass.servingEnv" . | nindent 6 }}
    {{- if ne (include "rareclass.backend" .) "seldon" }}
    ports:
      - {name: http, containerPort: 9000}
      - {name: grpc, containerPort: 9500}
      - {name: metrics, containerPort: 6000}
    lifecycle:
      preStop: {exec: {command: [/bin/sh, -c, /bin/sleep 10]}}
    {{- end }}
    {{- include "rareclass.servingProbes" . | nindent 4 }}
    securityContext: {{- include "rareclass.containerSecurity" . | nindent 6 }}
    resources: {{- toYaml $serving.resources | nindent 6 }}
    volumeMounts:
      - {name: config, mountPath: /config, readOnly: true}
      {{- include "rareclass.commonMounts" . | nindent 6 }}
      - {name: spool, mountPath: /spool}
volumes:
  - name: config
    configMap: {name: {{ $name }}-config}
  {{- include "rareclass.commonVolumes" . | nindent 2 }}
  {{- if not $serving.spool.persistent }}
  {{- include "rareclass.spoolVolume" $serving.spool | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "rareclass.servingEnv" -}}
{{- include "rareclass.storeEnv" . }}
- name: RARECLASS_VERSION
  valueFrom: {fieldRef: {fieldPath: "metadata.annotations['rareclass.io/version']"}}
- {name: OMP_NUM_THREADS, value: "1"}
{{- with .Values.serving.tokenSecret }}
{{ include "rareclass.tokenEnv" (list (default "RARECLASS_SERVE_TOKEN" (dig "serve" "token_env" "" $.Values.config)) .) }}
{{- end }}
{{- with .Values.serving.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Does KServe's agent report requests and answers? */ -}}
{{- define "rareclass.logged" -}}
{{- if and (eq (include "rareclass.backend" .) "kserve") .Values.serving.kserve.logger }}true{{ end -}}
{{- end -}}

{{- define "rareclass.servingProbes" -}}
startupProbe: # the version is loaded and has scored its golden rows
  httpGet: {path: /v2/health/ready, port: 9000}
  periodSeconds: 2
  failureThreshold: {{ div .Values.serving.startSeconds 2 | max 1 }}
readinessProbe:
  httpGet: {path: /v2/health/ready, port: 9000}
  periodSeconds: 3
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  httpGet: {path: /v2/health/live, port: 9000}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}
