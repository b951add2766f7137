/* Makes chosen system calls fail for one descriptor, and MACs of libcrypto: preloaded into tests/fast/shimmed.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SENDMMSG, RECVMMSG, READ, WRITEV, SENDMSG, CALLS };

/* `after` calls go through first, then `times` fail (-1: all). `cap` bounds how many messages one call takes. */
struct plan {
    int fd, error, cap, alternate;
    atomic_long after, times, calls;
};

static struct plan plans[CALLS];

void shim_plan(int call, int fd, int error, long after, long times, int cap)
{
    struct plan *p = &plans[call];
    p->fd = fd;
    p->error = error;
    p->cap = cap;
    p->after = after;
    p->times = times;
    p->calls = 0;
}

/* Every second call fails. */
void shim_alternate(int call, int on)
{
    plans[call].alternate = on;
}

long shim_calls(int call)
{
    return plans[call].calls;
}

static int fails(int call, int fd)
{
    struct plan *p = &plans[call];
    if (p->fd != fd || fd == 0)
        return 0;
    p->calls++;
    if (p->alternate && p->calls % 2)
        return 0;
    if (p->alternate) {
        errno = p->error;
        return 1;
    }
    if (p->after > 0) {
        p->after--;
        return 0;
    }
    if (p->times == 0 || p->error == 0)
        return 0;
    if (p->times > 0)
        p->times--;
    errno = p->error;
    return 1;
}

#define REAL(type, name, ...)                      \
    static type (*real)(__VA_ARGS__);              \
    if (!real)                                     \
        real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

int sendmmsg(int fd, struct mmsghdr *messages, unsigned n, int flags)
{
    REAL(int, "sendmmsg", int, struct mmsghdr *, unsigned, int);
    if (fails(SENDMMSG, fd))
        return -1;
    if (plans[SENDMMSG].fd == fd && plans[SENDMMSG].cap && n > (unsigned)plans[SENDMMSG].cap)
        n = plans[SENDMMSG].cap;
    return real(fd, messages, n, flags);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned n, int flags, struct timespec *timeout)
{
    REAL(int, "recvmmsg", int, struct mmsghdr *, unsigned, int, struct timespec *);
    if (fails(RECVMMSG, fd))
        return -1;
    return real(fd, messages, n, flags, timeout);
}

ssize_t read(int fd, void *data, size_t n)
{
    REAL(ssize_t, "read", int, void *, size_t);
    return fails(READ, fd) ? -1 : real(fd, data, n);
}

ssize_t writev(int fd, const struct iovec *pieces, int n)
{
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return fails(WRITEV, fd) ? -1 : real(fd, pieces, n);
}

static atomic_long good_macs, bad_macs;

/* After `after` MACs, `times` fail. */
void shim_mac(long after, long times)
{
    good_macs = after;
    bad_macs = times;
}

int EVP_MAC_final(void *ctx, unsigned char *out, size_t *length, size_t room)
{
    static int (*real)(void *, unsigned char *, size_t *, size_t);
    if (!real) {
        void *library = dlopen("libcrypto.so.3", RTLD_LAZY | RTLD_NOLOAD);
        real = (int (*)(void *, unsigned char *, size_t *, size_t))dlsym(library ? library : RTLD_NEXT, "EVP_MAC_final");
    }
    if (good_macs > 0) {
        good_macs--;
    } else if (bad_macs > 0) {
        bad_macs--;
        return 0;
    }
    return real(ctx, out, length, room);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    REAL(ssize_t, "sendmsg", int, const struct msghdr *, int);
    return fails(SENDMSG, fd) ? -1 : real(fd, message, flags);
}

static atomic_long squatters = -1;

/* From now on, after each bind() another user tries for the same address. How often that went well. */
long shim_squatters(int begin)
{
    long had = squatters;
    squatters = begin ? 0 : -1;
    return had;
}

int bind(int fd, const struct sockaddr *address, socklen_t size)
{
    REAL(int, "bind", int, const struct sockaddr *, socklen_t);
    int on = 1, other, done = real(fd, address, size);
    if (squatters < 0 || done < 0)
        return done;
    setfsuid(65534);
    other = socket(address->sa_family, SOCK_DGRAM, 0);
    setsockopt(other, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(other, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (real(other, address, size) == 0)
        squatters++;
    close(other);
    setfsuid(0);
    return done;
}
