// SPDX-License-Identifier: Apache-2.0
//
// Both descriptors or nothing (MODEL A1, A2): three programs that share no descriptors. One has a
// device, one a context, one another context. What the first may do with the second's context it
// may do once a descriptor of it has come through a socket, and no sooner; numbers say nothing.
// Exits with 0 where all was so.

#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "copy_engine.h"

static const char *role = "?";
static int failures;

static void expect(int error, int result, const char *what) {
  int seen = result < 0 ? errno : 0;
  if (seen == error) return;
  printf("%s: %s: errno %d (%s), expected %d\n", role, what, seen, strerror(seen), error);
  failures++;
}

static void need(bool good, const char *what) {
  if (good) return;
  printf("%s: %s: %s\n", role, what, strerror(errno));
  exit(1);
}

// ---- Sockets with a name, as unrelated programs meet.

static struct sockaddr_un address(const char *name) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  // Abstract names are the machine's: each run has its own.
  snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "iommu-%s-%s", getenv("RUN"), name);
  return address;
}

static int serve(const char *name) {
  struct sockaddr_un own = address(name);
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  need(fd >= 0 && !bind(fd, (struct sockaddr *)&own, sizeof own) && !listen(fd, 4), "listen");
  return fd;
}

static int meet(const char *name) {
  struct sockaddr_un other = address(name);
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  for (int wait = 0; wait < 3000; wait++) {
    if (!connect(fd, (struct sockaddr *)&other, sizeof other)) return fd;
    usleep(10000);
  }
  need(false, name);
  return -1;
}

struct message {
  int number;     // of the descriptor, where it was sent from
  uint32_t space; // an object of the context
};

// Sends a message, and a descriptor where `fd` is not negative.
static void tell(int socket, struct message message, int fd) {
  char control[CMSG_SPACE(sizeof fd)] = {0};
  struct iovec part = {&message, sizeof message};
  struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
  if (fd >= 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(rights), &fd, sizeof fd);
  }
  need(sendmsg(socket, &header, 0) == sizeof message, "sendmsg");
}

static struct message hear(int socket, int *fd) {
  struct message message = {0};
  char control[CMSG_SPACE(sizeof *fd)] = {0};
  struct iovec part = {&message, sizeof message};
  struct msghdr header = {.msg_iov = &part,
                          .msg_iovlen = 1,
                          .msg_control = control,
                          .msg_controllen = sizeof control};
  need(recvmsg(socket, &header, MSG_CMSG_CLOEXEC) == sizeof message, "recvmsg");
  struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
  if (fd) *fd = -1;
  if (fd && rights) memcpy(fd, CMSG_DATA(rights), sizeof *fd);
  return message;
}

// ---- The calls.

static uint32_t make_space(int iommu) {
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  need(!ioctl(iommu, IOMMU_IOAS_ALLOC, &alloc), "IOMMU_IOAS_ALLOC");
  return alloc.out_ioas_id;
}

static int destroy(int iommu, uint32_t id) {
  struct iommu_destroy destroy = {.size = sizeof destroy, .id = id};
  return ioctl(iommu, IOMMU_DESTROY, &destroy);
}

static int bind_to(int device, int iommu) {
  struct engine engine = {.device = device, .iommu = iommu};
  return engine_bind(&engine);
}

static int attach(int device, uint32_t space) {
  struct vfio_device_attach_iommufd_pt attach = {.argsz = 16, .pt_id = space};
  return ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
}

// ---- The programs.

// Has a context with a space that it tells of: in the other one, of a number that the first never
// comes to.
static int context_program(const char *name) {
  int iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  need(iommu >= 0, "/dev/iommu");
  uint32_t space = make_space(iommu);
  for (int i = 0; i < 20 && !strcmp(name, "other"); i++) space = make_space(iommu);
  int listener = serve(name), user = accept(listener, NULL, NULL);
  tell(user, (struct message){iommu, space}, -1);
  hear(user, NULL);
  tell(user, (struct message){iommu, space}, iommu);
  // From here the context is the other program's alone: this one ends.
  return 0;
}

static int device_program(const char *self) {
  struct engine engine = {.event = -1};
  need(engine_find(&engine, NULL), "a copy engine");
  int device = open(engine.node, O_RDWR | O_CLOEXEC);
  need(device >= 0, engine.node);
  int one = meet("one"), other = meet("other");
  struct message first = hear(one, NULL), second = hear(other, NULL);

  // The device alone connects to nothing: not to no descriptor, not to the number that the
  // context has elsewhere, not to a file that is no context.
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  expect(EINVAL, bind_to(device, -1), "bind to no descriptor");
  if (fcntl(first.number, F_GETFD) < 0)
    expect(EBADF, bind_to(device, first.number), "bind to a number of another program");
  expect(EBADFD, bind_to(device, null), "bind to /dev/null");
  expect(EINVAL, attach(device, first.space), "attach before the bind");

  // With both it is done.
  int iommu;
  tell(one, first, -1);
  hear(one, &iommu);
  need(iommu >= 0, "the context's descriptor");
  expect(0, bind_to(device, iommu), "bind");
  expect(0, attach(device, first.space), "attach");

  // Another context's ids are not this one's, whoever holds both.
  int foreign;
  tell(other, second, -1);
  hear(other, &foreign);
  need(second.space != first.space, "the contexts' ids differ");
  expect(ENOENT, attach(device, second.space), "attach to another context's space");
  expect(ENOENT, destroy(iommu, second.space), "destroy another context's space");
  expect(EINVAL, bind_to(device, foreign), "bind a second time");
  int again = open(engine.node, O_RDWR | O_CLOEXEC);
  expect(EINVAL, bind_to(again, foreign), "bind another open of the node");

  // A copy is the same context, in a child too; across exec it is one if it is left open.
  int copy = dup(iommu);
  uint32_t space = make_space(iommu);
  pid_t child = fork();
  if (!child) {
    role = "child";
    expect(0, destroy(copy, space), "destroy by a child's copy");
    expect(0, attach(device, make_space(copy)), "attach by a child");
    _exit(failures != 0);
  }
  int status = 1;
  waitpid(child, &status, 0);
  failures += status != 0;
  space = make_space(copy);
  char numbers[3][16];
  snprintf(numbers[0], 16, "%d", copy);
  snprintf(numbers[1], 16, "%d", iommu);
  snprintf(numbers[2], 16, "%u", space);
  child = fork();
  if (!child) {
    execl(self, self, "after-exec", numbers[0], numbers[1], numbers[2], NULL);
    _exit(1);
  }
  waitpid(child, &status, 0);
  failures += status != 0;
  expect(ENOENT, destroy(iommu, space), "destroy what the program after exec destroyed");

  // The device goes with the last descriptor, wherever that is; then it is anybody's.
  int pair[2];
  need(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), "socketpair");
  tell(pair[0], first, device);
  close(device);
  expect(EINVAL, bind_to(again, foreign), "bind while a descriptor is on its way");
  hear(pair[1], &device);
  close(device);
  int bound = -1;
  for (int wait = 0; wait < 3000 && bound; wait++) {
    if ((bound = bind_to(again, foreign))) usleep(10000);
  }
  expect(0, bound, "bind once the last descriptor was closed");
  expect(0, attach(again, second.space), "attach to the other context");
  return failures != 0;
}

static int after_exec(char **arguments) {
  int open = atoi(arguments[0]), closed = atoi(arguments[1]);
  expect(EBADF, destroy(closed, 1), "a descriptor that exec closed");
  expect(0, destroy(open, (uint32_t)atoi(arguments[2])), "a descriptor that exec left open");
  return failures != 0;
}

// Runs this program anew, as a stranger: nothing but the standard descriptors.
static pid_t start(const char *self, const char *name) {
  pid_t child = fork();
  if (child) return child;
  execl(self, self, name, NULL);
  _exit(1);
}

int main(int count, char **arguments) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  role = count > 1 ? arguments[1] : "all";
  if (count == 5) return after_exec(arguments + 2);
  if (count > 1) {
    if (!strcmp(role, "device")) return device_program(arguments[0]);
    return context_program(role);
  }
  char run[32];
  snprintf(run, sizeof run, "%d-%ld", getpid(), (long)time(NULL));
  setenv("RUN", run, 1);
  const char *names[] = {"one", "other", "device"};
  pid_t children[3];
  for (int i = 0; i < 3; i++) children[i] = start(arguments[0], names[i]);
  int failed = 0;
  for (int i = 0; i < 3; i++) {
    int status;
    waitpid(children[i], &status, 0);
    if (status) printf("%s ended with %#x\n", names[i], status), failed = 1;
  }
  return failed;
}
