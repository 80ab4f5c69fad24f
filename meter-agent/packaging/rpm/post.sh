# $1 is the number of versions that are installed now.
systemd-sysusers meter-agent.conf
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
fi
if [ "$1" -eq 1 ]; then
    systemctl enable meter-agent.service || :
    if [ -d /run/systemd/system ]; then
        systemctl start meter-agent.service || :
    fi
fi
