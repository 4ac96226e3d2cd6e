// SPDX-License-Identifier: Apache-2.0
//
// Files in /sys that are asked and told, and devices that come and go by them, with the programs
// that people use for it. The test machine's attributes: Tests/Programs/interposer-host.

import Foundation
import Testing

@Suite("Attributes and views that change", .serialized)
struct AttributeTests {
  private static let home = "/sys/devices/test"

  /// Runs a script of bash in the directory of the attributes.
  private func bash(
    _ script: String, as user: User = .current, options: [String] = [], shell: String = "bash"
  ) -> Outcome {
    Programs.hosted(
      [shell, "-c", "cd \(Self.home) || exit 99\n" + script], as: user, options: options)
  }

  @Test(
    "An attribute is read, written and read again", arguments: ["bash", "dash"], User.allCases)
  func readAndWrite(_ shell: String, _ user: User) {
    let outcome = bash(
      """
      cat value
      echo second > value
      cat value
      read line < value; echo "read $line"
      printf third > value
      cat < value
      echo fourth >> value
      exec 5< value; cat <&5
      """, as: user, shell: shell)
    #expect(outcome.output == "first\nsecond\nread second\nthird\nfourth\n", "\(outcome)")
    #expect(outcome.status == 0 && outcome.error == "", "\(outcome)")
  }

  @Test("A write that fails tells the program", arguments: ["bash", "dash"], User.allCases)
  func refusedWrite(_ shell: String, _ user: User) {
    let outcome = bash(
      """
      echo bad > value && echo went
      echo bad | tee value > /dev/null && echo went
      cat value
      """, as: user, shell: shell)
    #expect(outcome.output == "first\n", "\(outcome)")
    #expect(outcome.error.contains("Invalid argument"), "\(outcome)")
  }

  @Test(
    "Permissions are sysfs's: a command cannot be read, what is shown cannot be written",
    arguments: User.allCases)
  func permissions(_ user: User) {
    let outcome = bash(
      """
      cat create
      echo new > create
      echo name > new/name
      stat -c '%a %F' create value new/name
      """, as: user)
    #expect(
      outcome.output == "200 regular file\n644 regular file\n444 regular file\n", "\(outcome)")
    #expect(
      outcome.error.components(separatedBy: "Permission denied").count == 3, "\(outcome)")
  }

  @Test("What a command makes is there when its write returns", arguments: User.allCases)
  func creates(_ user: User) {
    let outcome = bash(
      """
      for i in $(seq 30); do
        echo dev$i > create
        [ -d dev$i ] && [ -e dev$i/files/99 ] && [ -c /dev/test/dev$i ] || echo "no dev$i"
      done
      cat dev7/name /sys/class/test/dev7/name
      ls /sys/class/test | wc -l
      exec 9<>/dev/test/dev7 && echo opened
      for i in $(seq 30); do
        echo dev$i > remove
        [ -e dev$i ] || [ -e /dev/test/dev$i ] || [ -L /sys/class/test/dev$i ] && echo "dev$i"
      done
      cat /dev/test/dev7 dev7/name
      ls /sys/class/test | wc -l
      """, as: user)
    #expect(outcome.output == "dev7\ndev7\n30\nopened\n0\n", "\(outcome)")
    #expect(
      outcome.error == """
        cat: /dev/test/dev7: No such file or directory
        cat: dev7/name: No such file or directory

        """)
  }

  @Test(
    "A write to any descriptor works, and the next call sees its effect",
    arguments: User.allCases)
  func lowDescriptors(_ user: User) {
    let outcome = bash(
      """
      exec 3> log 4> create
      echo one >&3
      /bin/echo two >&3
      python3 -c '
      import os
      os.write(3, b"three\\n")
      os.write(3, b"four\\n")
      os.write(4, b"low\\n")
      print(os.listdir("low/files") != [], flush=True)
      os.write(4, b"low\\n")
      '
      exec 3>&- 4>&-
      cat log
      """, as: user)
    #expect(outcome.output == "True\n[one][two][three][four]\n", "\(outcome)")
    #expect(
      outcome.error == """
        iommu: write on \(Self.home)/create: low is there already (EEXIST); the program was not \
        told, as it wrote to a descriptor that it had moved below 768

        """)
  }

  @Test("Each write is one store; reads go on where they stopped", arguments: User.allCases)
  func python(_ user: User) {
    let outcome = bash(
      """
      python3 -c '
      import os, errno
      fd = os.open("log", os.O_RDWR)
      for text in b"a", b"bb\\n", b"": os.write(fd, text)
      os.writev(fd, [b"c", b"d"])
      os.pwrite(fd, b"e", 77)
      print(os.pread(fd, 100, 0), os.pread(fd, 4, 3))
      os.lseek(fd, 0, 0)
      print(os.read(fd, 3), os.read(fd, 100), os.read(fd, 1))
      print(os.write(fd, b"x" * 5000))
      value = open("value", "r+")
      print(value.read(), end="")
      try: os.write(value.fileno(), b"bad")
      except OSError as error: print(errno.errorcode[error.errno])
      open("value", "w").write("new")
      print(open("value").read(), end="")
      print(os.fstat(value.fileno()).st_mode & 0o170000 == 0o100000)
      '
      """, as: user)
    #expect(
      outcome.output == """
        b'[a][bb][cd][e]\\n' b'[bb]'
        b'[a]' b'[bb][cd][e]\\n' b''
        4096
        first
        EINVAL
        new
        True

        """, "\(outcome)")
  }

  @Test("An attribute that is gone is ENODEV to who has it open", arguments: User.allCases)
  func removedWhileOpen(_ user: User) {
    let outcome = bash(
      """
      echo dev > create
      python3 -c '
      import os, errno
      fd = os.open("dev/name", os.O_RDONLY)
      place = os.open("dev/name", os.O_PATH)
      node = os.open("/dev/test/dev", os.O_PATH)
      print(os.read(fd, 9))
      open("remove", "w").write("dev")
      for call in lambda: os.pread(fd, 9, 0), lambda: os.open("/proc/self/fd/%d" % place, 0), \\
          lambda: os.open("/proc/self/fd/%d" % node, 0):
        try: print(call())
        except OSError as error: print(errno.errorcode[error.errno])
      '
      """, as: user)
    #expect(outcome.output == "b'dev\\n'\nENODEV\nENODEV\nENODEV\n", "\(outcome)")
  }

  @Test("A child with a mount namespace of its own sees devices come and go")
  func otherNamespace() {
    let outcome = Programs.hosted(
      Programs.unshare + [
        "sh", "-c",
        """
        cd \(Self.home)
        echo inner > create; ls -d inner /dev/test/inner; cat inner/name
        """,
      ])
    #expect(outcome.output == "/dev/test/inner\ninner\ninner\n", "\(outcome)")
  }

  @Test("No reader sees half of a directory", arguments: User.allCases)
  func wholeDirectories(_ user: User) {
    let outcome = bash(
      """
      python3 -c '
      import os, threading
      done = False
      partial = []
      def watch():
        while not done:
          fd = -1
          try:
            fd = os.open("dev/files", os.O_RDONLY)
            count = len(os.listdir(fd))
            there = os.path.samestat(os.fstat(fd), os.stat("dev/files"))
          except FileNotFoundError: continue
          finally:
            if fd >= 0: os.close(fd)
          if there and count != 100: partial.append(count)
      thread = threading.Thread(target=watch)
      thread.start()
      for _ in range(50):
        for name in "create", "remove":
          fd = os.open(name, os.O_WRONLY); os.write(fd, b"dev"); os.close(fd)
      done = True
      thread.join()
      print(partial)
      '
      """, as: user)
    #expect(outcome.output == "[]\n", "\(outcome)")
  }

  @Test("Output that goes elsewhere passes by while an attribute is open")
  func output() {
    let outcome = bash(
      """
      exec 3> value
      for i in $(seq 200); do echo $i; done | tail -1
      for i in $(seq 3); do echo $i >&3; done
      cat value
      """)
    #expect(outcome.output == "200\n3\n", "\(outcome)")
  }
}
