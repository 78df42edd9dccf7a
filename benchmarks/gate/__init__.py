"""The gate: what a delivery costs in instructions and system calls, and a subscriber in memory.

`just bench-gate` compares with committed numbers, `just bench-gate --against REVISION` with
another revision that is measured in the same run. Counts, and no times, of the real server over
real sockets: a busy machine changes hardly any of them. Instructions are those of user space, by
callgrind; what the kernel does is not among them, and system calls, by strace, stand for it.
Memory is the resident bytes of one idle subscriber.

What it does not see: latency, and whatever happens seldom (sweeps, the collector). Instruction
counts and memory hold for one minor version of Python, compiler and architecture. Elsewhere only
system calls can be compared with committed numbers, the gate says so and gives no verdict. The JSON
names the packages and libc too: another version of these is said, and compared all the same.
"""
