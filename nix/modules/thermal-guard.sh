# thermal-guard NVIDIA-SMI VENDOR:DEVICE=DEGREES...: while such a card is at that temperature or above,
# it has its lowest power limit; ten degrees below, it has its own again.
smi=$1
shift
seconds=${LEGACY_CUDA_GUARD_SECONDS:-5}
declare -A hot=() before=()
for item in "$@"; do
  hot[${item%=*}]=${item#*=}
done

limit() {
  echo "card $1: power limit $2 W" >&2
  "$smi" "--id=$1" "--power-limit=$2" >/dev/null
}

restore() {
  for index in "${!before[@]}"; do
    limit "$index" "${before[$index]}" || true
  done
  exit 0
}
trap restore TERM INT

query=index,pci.device_id,temperature.gpu,power.limit,power.min_limit
while true; do
  readings=$("$smi" "--query-gpu=$query" --format=csv,noheader,nounits) || readings=
  while IFS=', ' read -r index id degrees now least; do
    id=${id,,}
    bound=${hot[${id:6:4}:${id:2:4}]:-}
    # "[N/A]" where a card does not tell
    if [ -z "$bound" ] || ! [[ $degrees =~ ^[0-9]+$ && $now =~ ^[0-9.]+$ && $least =~ ^[0-9.]+$ ]]; then
      continue
    fi
    if [ "$degrees" -ge "$bound" ] && [ -z "${before[$index]:-}" ]; then
      echo "card $index: $degrees degrees" >&2
      # first, so that a signal in between finds what to restore
      before[$index]=$now
      limit "$index" "$least" || unset "before[$index]"
    elif [ "$degrees" -le $((bound - 10)) ] && [ -n "${before[$index]:-}" ]; then
      echo "card $index: $degrees degrees" >&2
      limit "$index" "${before[$index]}" && unset "before[$index]"
    fi
  done <<<"$readings"
  # in the background, so that a signal is answered at once
  sleep "$seconds" &
  wait $!
done
