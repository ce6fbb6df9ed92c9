# idle-power NVIDIA-SMI NVIDIA-PSTATED VENDOR:DEVICE=STATE...: have nvidia-pstated put such cards into
# that state while they are idle. It knows one state for all of its cards.
smi=$1
pstated=$2
shift 2
declare -A states=() ids=()
for item in "$@"; do
  states[${item%=*}]=${item#*=}
done

cards=$("$smi" --query-gpu=index,pci.device_id --format=csv,noheader)
# "0, 0x1B3810DE": the number of the device, then that of the vendor
while IFS=', ' read -r index id; do
  id=${id,,}
  state=${states["${id:6:4}:${id:2:4}"]:-}
  if [ -n "$state" ]; then
    ids[$state]+="${ids[$state]:+,}$index"
  fi
done <<<"$cards"
if [ "${#ids[@]}" -ne 1 ]; then
  echo "cards for ${#ids[@]} states are there, and nvidia-pstated takes those of one" >&2
  exit 1
fi
found=("${!ids[@]}")
exec "$pstated" --ids "${ids[${found[0]}]}" --performance-state-low "${found[0]}"
