# $1 is the number of versions that will be left. A removal leaves nothing in the kernel.
if [ "$1" -eq 0 ]; then
    if [ -d /run/systemd/system ]; then
        systemctl disable --now meter-agent.socket meter-agent.service || :
    fi
    meter-agent detach || echo "meter-agent: some hooks may be left below /sys/fs/bpf/meter-agent" >&2
fi
