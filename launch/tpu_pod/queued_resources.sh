#!/usr/bin/env bash
# One training on TPU VMs without Kubernetes: asks for a slice, waits for it, installs, trains on all its hosts. Run again to go on after a preemption.
#   PROJECT=.. ZONE=.. REPOSITORY=https://github.com/OWNER/revision_jax SHARED=10.0.0.2:/share launch/tpu_pod/queued_resources.sh
set -euo pipefail

: "${PROJECT:?the cloud project}" "${ZONE:?such as us-west4-a}" "${REPOSITORY:?git address of this code}" "${SHARED:?NFS export, such as 10.0.0.2:/share}"
NAME=${NAME:-revision-train}
TYPE=${TYPE:-v5litepod-16}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
here=(--project="$PROJECT" --zone="$ZONE")

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${here[@]}" --format='value(state.state)' 2>/dev/null || true
}

everywhere() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${here[@]}" --worker=all --command="$1"
}

case "$(state)" in
  "") ;;
  SUSPENDED | FAILED) gcloud compute tpus queued-resources delete "$NAME" "${here[@]}" --force --quiet ;; # preempted
esac
if [[ -z "$(state)" ]]; then
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${here[@]}" --accelerator-type="$TYPE" --runtime-version="$VERSION" --spot
fi
until [[ "$(state)" == ACTIVE ]]; do
  echo "waiting for $TYPE: $(state)"
  sleep 30
done

everywhere "sudo apt-get -qq install -y nfs-common && sudo mkdir -p /shared && (mountpoint -q /shared || sudo mount $SHARED /shared)"
everywhere "test -d revision_jax || git clone --depth 1 $REPOSITORY revision_jax
  cd revision_jax && python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt 'jax[tpu]' tensorboardX"
everywhere "cd revision_jax && JAX_OPTIMIZATION_LEVEL=O1 .venv/bin/python -m launch.train revisionllm_7b_mad --coordinator auto --stage 1a \
  --workdir /shared/runs/mad --init /shared/checkpoints/revisionllm_7b \
  mesh.rules=fsdp mesh.data=1 mesh.fsdp=-1 data.root=/shared/datasets data.features=/shared/features/mad"
