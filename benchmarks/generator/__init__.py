"""The load generator: subscribers and publishers as raw sockets on one epoll, without a task."""
