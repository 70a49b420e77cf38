{{- /* One turn of the loop as a workflow: the template that events start and the schedule that Argo starts carry the same text. A
schedule that only names the template is refused for good when Argo sees it first, and Helm installs it first. */ -}}
{{- define "rareclass.turn" -}}
{{- $name := include "rareclass.fullname" . -}}
{{- $retrain := .Values.retrain -}}
{{- $config := list "-c" "/config/config.yaml" -}}
workflowMetadata:
  labels: {{- include "rareclass.workflowLabels" . | nindent 4 }}
serviceAccountName: {{ $name }}-workflow
entrypoint: turn
onExit: record
arguments:
  parameters:
    - {name: cause, value: by hand} # what started it, for whoever reads the workflow
{{- $manual := include "rareclass.manual" . }}
{{- if $manual }}
activeDeadlineSeconds: {{ add $retrain.deadlineSeconds $retrain.approvalSeconds }}
{{- else }}
activeDeadlineSeconds: {{ $retrain.deadlineSeconds }}
# One turn at a time: a second one waits, and finds that everything is done.
synchronization: {mutexes: [{name: {{ $name }}-turn}]}
{{- end }}
podGC: {strategy: OnPodSuccess}
ttlStrategy: {secondsAfterSuccess: {{ $retrain.keepSeconds.succeeded }}, secondsAfterFailure: {{ $retrain.keepSeconds.failed }}}
securityContext: {{- include "rareclass.podSecurity" . | nindent 2 }}
{{- include "rareclass.pull" . | nindent 0 }}
{{- with .Values.pods.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.pods.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.pods.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.pods.priorityClassName }}
podPriorityClassName: {{ . }}
{{- end }}
# Argo's own containers get nothing by default that a namespace with the restricted profile lets through.
{{- $own := dict "securityContext" (include "rareclass.containerSecurity" . | fromYaml) }}
podSpecPatch: {{ dict "initContainers" (list (merge (dict "name" "init") $own)) "containers" (list (merge (dict "name" "wait") $own)) | toJson | quote }}
metrics:
  prometheus:
    - name: rareclass_turns_total
      help: Turns of the loop by how they ended
      labels:
        - {key: model, value: {{ include "rareclass.model" . | quote }}}
        - {key: release_namespace, value: {{ .Release.Namespace | quote }}}
        - {key: status, value: {{ `"{{workflow.status}}"` }}}
      counter: {value: "1"}
    - name: rareclass_turn_duration_seconds
      help: How long the last turn took
      labels:
        - {key: model, value: {{ include "rareclass.model" . | quote }}}
        - {key: release_namespace, value: {{ .Release.Namespace | quote }}}
      gauge: {value: {{ `"{{workflow.duration}}"` }}, realtime: false}
volumes:
  - name: config
    configMap: {name: {{ $name }}-config}
  {{- include "rareclass.commonVolumes" . | nindent 2 }}
  {{- if include "rareclass.kubeflowToken" . }}
  - name: kubeflow-token
    projected:
      sources:
        - serviceAccountToken: {path: token, expirationSeconds: 7200, audience: pipelines.kubeflow.org}
  {{- end }}
templates:
  {{- if $manual }}
  - name: turn
    steps:
      - - {name: act, template: act}
      - - name: ask
          template: ask
          when: {{ `"'{{steps.act.outputs.parameters.kind}}' == 'retrain' || '{{steps.act.outputs.parameters.kind}}' == 'recalibrate'"` }}
      {{- if .Values.serving.enabled }}
      - - {name: deploy, template: deploy}
      {{- end }}
  # A version may wait for a person. What waits holds no lock: other turns triage meanwhile, and the next one deploys what was
  # approved. Whoever approves lets this one go on with `argo resume`; else it does when its time is over.
  - name: ask
    steps:
      - - {name: approval, template: approval}
      - - name: await-approval
          template: await-approval
          when: {{ `"{{steps.approval.outputs.parameters.code}} == 20"` }}
  - name: await-approval
    suspend: {duration: {{ printf "%ds" (int $retrain.approvalSeconds) | quote }}}
  - {{- include "rareclass.step" (dict "root" . "name" "approval" "deadline" 900 "command" (list "/bin/sh" "-c") "args" (list "rareclass approval -c /config/config.yaml; code=$?; echo $code >/tmp/approval; case $code in 0 | 20 | 21) ;; *) exit $code ;; esac")) | nindent 4 }}
    outputs: {parameters: [{name: code, valueFrom: {path: /tmp/approval}}]}
  # One at a time: a second one waits, and finds that everything is done.
  - name: act
    synchronization: {mutexes: [{name: {{ $name }}-turn}]}
    outputs: {parameters: [{name: kind, valueFrom: {parameter: {{ `"{{steps.triage.outputs.parameters.kind}}"` }}}}]}
    steps:
  {{- else }}
  - name: turn
    steps:
  {{- end }}
      - - {name: triage, template: triage}
      - - name: repair
          template: repair
          arguments: {parameters: [{name: number, value: {{ `"{{steps.triage.outputs.parameters.number}}"` }}}]}
          when: {{ `"'{{steps.triage.outputs.parameters.kind}}' == 'rethreshold' || '{{steps.triage.outputs.parameters.kind}}' == 'recalibrate'"` }}
        - name: retrain
          template: retrain
          arguments: {parameters: [{name: number, value: {{ `"{{steps.triage.outputs.parameters.number}}"` }}}]}
          when: {{ `"'{{steps.triage.outputs.parameters.kind}}' == 'retrain'"` }}
      {{- if and .Values.serving.enabled (not $manual) }}
      - - {name: deploy, template: deploy}
      {{- end }}
  - {{- include "rareclass.step" (dict "root" . "name" "triage" "deadline" 900 "args" (concat (list "triage") $config (list "--output-file" "/tmp/turn.json"))) | nindent 4 }}
    outputs:
      parameters:
        - {name: kind, valueFrom: {path: /tmp/turn.json.kind}}
        - {name: number, valueFrom: {path: /tmp/turn.json.number}}
        - {name: turn, valueFrom: {path: /tmp/turn.json}}
    metrics:
      prometheus:
        - name: rareclass_turn_verdicts_total
          help: What the turns of the loop decided, after the governor's brakes
          when: {{ `"{{status}} == Succeeded"` }}
          labels:
            - {key: model, value: {{ include "rareclass.model" . | quote }}}
            - {key: release_namespace, value: {{ .Release.Namespace | quote }}}
            - {key: kind, value: {{ `"{{outputs.parameters.kind}}"` }}}
          counter: {value: "1"}
  - {{- include "rareclass.step" (dict "root" . "name" "repair" "deadline" 3600 "args" (concat (list "repair") $config (list "--number" "{{inputs.parameters.number}}"))) | nindent 4 }}
    inputs: {parameters: [{name: number}]}
  {{- if eq $retrain.runner "kubeflow" }}
  - {{- include "rareclass.step" (dict "root" . "name" "retrain" "deadline" $retrain.deadlineSeconds "args" (concat (list "submit") $config (list "--repair" "{{inputs.parameters.number}}" "--wait" "--set" (printf "cluster=%s" (include "rareclass.clusterSettings" .))))) | nindent 4 }}
    inputs: {parameters: [{name: number}]}
  {{- else }}
  - {{- include "rareclass.step" (dict "root" . "name" "retrain" "deadline" $retrain.deadlineSeconds "args" (concat (list "repair") $config (list "--number" "{{inputs.parameters.number}}"))) | nindent 4 }}
    inputs: {parameters: [{name: number}]}
  {{- end }}
  {{- if .Values.serving.enabled }}
  - {{- include "rareclass.step" (dict "root" . "name" "deploy" "deadline" (add $retrain.deploySeconds 300) "args" (concat (list "deploy") $config (list "--kind" (include "rareclass.servingKind" .) "--name" (include "rareclass.servingObject" .) "--namespace" .Release.Namespace "--timeout" (toString $retrain.deploySeconds) "--optional"))) | nindent 4 }}
  {{- end }}
  - {{- include "rareclass.step" (dict "root" . "name" "record" "deadline" 900 "args" (concat (list "repair") $config (list "--close" "{{workflow.status}}"))) | nindent 4 }}
{{- end -}}
