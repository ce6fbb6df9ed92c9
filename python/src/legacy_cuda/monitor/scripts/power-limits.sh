# power-limits NVIDIA-SMI VENDOR:DEVICE=WATTS...: set the limit of every such card, which has to be in
# persistence mode to keep it.
smi=$1
shift
declare -A watts=()
for item in "$@"; do
  watts[${item%=*}]=${item#*=}
done

status=0
# It ends with an error when a card is lost, and lists the others all the same.
cards=$("$smi" --query-gpu=index,pci.device_id,persistence_mode --format=csv,noheader) || status=1
# "0, 0x1B3810DE, Enabled": the number of the device, then that of the vendor
while IFS=', ' read -r index id persistence; do
  id=${id,,}
  name="${id:6:4}:${id:2:4}"
  if [ -n "${watts[$name]:-}" ]; then
    "$smi" "--id=$index" "--power-limit=${watts[$name]}" || status=1
    if [ "$persistence" = Disabled ]; then
      echo "card $index: persistence mode is off: the limit is lost when no program uses the card" >&2
      status=1
    fi
  fi
done <<<"$cards"
exit "$status"
