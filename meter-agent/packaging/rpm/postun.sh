# $1 is the number of versions that are left. After an upgrade the new agent takes the hooks over.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ "$1" -ge 1 ]; then
        systemctl try-restart meter-agent.service || :
    fi
fi
if [ "$1" -eq 0 ]; then
    # The package owns files and no directories. What an administrator wrote stays, and so do the meters that were added at
    # run time.
    rmdir /usr/share/doc/meter-agent/docs /usr/share/doc/meter-agent/examples /usr/share/doc/meter-agent \
        /usr/share/licenses/meter-agent \
        /usr/share/meter-agent/prometheus /usr/share/meter-agent \
        /etc/meter-agent /var/lib/meter-agent 2>/dev/null || :
fi
