//! What a client and an operator see: the servers on sockets and the binaries as processes. Needs no root.

mod prometheus;
