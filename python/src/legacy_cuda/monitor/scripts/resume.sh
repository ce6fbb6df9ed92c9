# resume UNIT...: load nvidia_uvm anew. What uses it has to be stopped meanwhile.
running=()
for unit in "$@"; do
  if systemctl --quiet is-active "$unit"; then
    running+=("$unit")
  fi
done
if [ "${#running[@]}" -gt 0 ]; then
  # However this ends, what ran before runs again. Without waiting: it may wait for this unit.
  trap 'systemctl start --no-block "${running[@]}"' EXIT
  systemctl stop "${running[@]}" || true
fi
# not modprobe --remove: that may take the driver out as well
if ! { rmmod nvidia_uvm && modprobe nvidia_uvm; }; then
  echo "nvidia_uvm is in use by something else: CUDA may not work until the machine is restarted" >&2
  exit 1
fi
