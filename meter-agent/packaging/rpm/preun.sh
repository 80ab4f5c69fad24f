# $1 is the number of versions that will be left. A removal leaves nothing in the kernel.
if [ "$1" -eq 0 ]; then
    systemctl disable meter-agent.socket meter-agent.service || :
    if [ -d /run/systemd/system ]; then
        systemctl stop meter-agent.socket meter-agent.service || :
    fi
    # With a configuration that is wrong, what is at the usual place is removed.
    empty=$(mktemp)
    meter-agent detach || meter-agent detach --config "$empty" ||
        echo "meter-agent: some hooks may be left below /sys/fs/bpf/meter-agent" >&2
    rm -f "$empty"
    rmdir /sys/fs/bpf/meter-agent 2>/dev/null || true
fi
