# thermal-guard NVIDIA-SMI VENDOR:DEVICE=DEGREES[,WATTS]...: while such a card is at that temperature
# or above, it has its lowest power limit; ten degrees below, it has its own again. WATTS is the limit
# that was set on purpose, if one was.
smi=$1
shift
seconds=${LEGACY_CUDA_GUARD_SECONDS:-5}
declare -A hot=() chosen=() before=()
for item in "$@"; do
  name=${item%=*}
  value=${item#*=}
  hot[$name]=${value%,*}
  if [[ $value == *,* ]]; then
    chosen[$name]=${value#*,}
  fi
done

limit() {
  echo "card $1: power limit $2 W" >&2
  timeout -k 5 30 "$smi" "--id=$1" "--power-limit=$2" >/dev/null
}

restore() {
  for index in "${!before[@]}"; do
    limit "$index" "${before[$index]}" || true
  done
  exit 0
}
trap restore TERM INT

said=0
query=index,pci.device_id,temperature.gpu,power.limit,power.min_limit,power.default_limit
while true; do
  # It ends with an error when a card is lost, and tells of the others all the same.
  status=0
  readings=$(timeout -k 5 30 "$smi" "--query-gpu=$query" --format=csv,noheader,nounits) || status=$?
  if [ "$status" -ne "$said" ]; then
    echo "nvidia-smi ends with $status" >&2
    said=$status
  fi
  while IFS=', ' read -r index id degrees now least default; do
    id=${id,,}
    name="${id:6:4}:${id:2:4}"
    bound=${hot[$name]:-}
    # "[N/A]" where a card does not tell
    if [ -z "$bound" ] || ! [[ $degrees =~ ^[0-9]+$ && $now =~ ^[0-9.]+$ && $least =~ ^[0-9.]+$ ]]; then
      continue
    fi
    if [ "$degrees" -ge "$bound" ] && [ -z "${before[$index]:-}" ]; then
      echo "card $index: $degrees degrees" >&2
      # A guard that ended while the card was hot has left it at the lowest.
      own=$now
      if [ "$now" = "$least" ] && [[ $default =~ ^[0-9.]+$ ]]; then
        own=${chosen[$name]:-$default}
      fi
      # first, so that a signal in between finds what to restore
      before[$index]=$own
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
