/* The floor: the least that one process can do to give an event to every subscriber.
 *
 * It answers each upgrade with a constant 101 and never looks at that socket again. One connection
 * begins with FEED: its bytes go to every subscriber with a bare non-blocking send(), one after the
 * other. floor.py is the same program in Python. Usage: floor PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 20000
#define LIFETIME 600 /* seconds: a floor ends soon after its benchmark in any case */

static const char ANSWER[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static int subscribers[MOST];
static int count = 0;
static char buffer[65536];

static void watch(int poller, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static void accept_all(int poller, int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(poller, fd);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    alarm(LIFETIME);
    int one = 1, feed = -1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("floor");
        return 1;
    }
    int poller = epoll_create1(0);
    watch(poller, listener);
    struct epoll_event ready[64];
    for (;;) {
        int events = epoll_wait(poller, ready, 64, -1);
        for (int i = 0; i < events; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                accept_all(poller, listener);
                continue;
            }
            ssize_t size = recv(fd, buffer, sizeof buffer, 0);
            if (size <= 0) {
                close(fd);
            } else if (fd == feed) {
                for (int s = 0; s < count; s++)
                    if (send(subscribers[s], buffer, size, MSG_NOSIGNAL) != size)
                        fprintf(stderr, "floor: a send was cut short\n");
            } else if (!memcmp(buffer, "FEED", 4)) {
                feed = fd;
            } else if (count < MOST) {
                epoll_ctl(poller, EPOLL_CTL_DEL, fd, NULL);
                subscribers[count++] = fd;
                if (send(fd, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL) < 0) return 1;
            }
        }
    }
}
