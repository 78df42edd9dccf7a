"""The gate: the cost of a delivery in instructions and system calls, of a subscriber in memory.

`just bench-gate` compares with committed numbers, `just bench-gate --against REVISION` with
another revision that is measured in the same run. The gate counts and does not time: it runs the
real server over real sockets, and a busy machine changes hardly any count. Callgrind counts
instructions in user space. It does not count the kernel's work; the system calls, counted by
strace, stand for that. Memory is the resident bytes of one idle subscriber.

The gate does not see latency, nor anything that happens seldom (sweeps, the collector).
Instruction counts and memory hold for one minor version of Python, compiler and architecture.
Elsewhere only system calls can be compared with committed numbers; the gate says so and gives no
verdict. The JSON also names the packages and libc: the gate reports another version of these, and
still compares.
"""
