# $1 is the number of versions that are left. After an upgrade the new agent takes the hooks over.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ "$1" -ge 1 ]; then
        systemctl try-restart meter-agent.service || :
    fi
fi
