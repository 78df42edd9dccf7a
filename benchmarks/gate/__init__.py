"""The gate: what a delivery costs in instructions and system calls, next to committed numbers.

`just bench-gate`. Counts, and no times, of the real server over real sockets: a busy machine
changes none of them. Instructions are those of user space, by callgrind; what the kernel does is
not among them, and system calls, by strace, stand for it.

What it does not see: memory, latency, and whatever happens seldom (sweeps, the collector).
Instruction counts hold for one minor version of Python, compiler and architecture; elsewhere only
system calls are compared, and the gate says so. The JSON names the packages and libc too: another
version of these is said, and compared all the same.
"""
