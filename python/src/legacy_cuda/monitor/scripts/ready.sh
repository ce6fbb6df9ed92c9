# ready SECONDS: wait until CUDA can open the driver.
# The modules come when udev has seen the card; nvidia-uvm comes last.
end=$((SECONDS + $1))
devices="${LEGACY_CUDA_DEV:-/dev}"
for node in nvidiactl nvidia-uvm; do
  until [ -e "$devices/$node" ]; do
    if [ "$SECONDS" -ge "$end" ]; then
      echo "$devices/$node did not appear: is the driver loaded, is a card there (dmesg)?" >&2
      exit 1
    fi
    sleep 1
  done
done
