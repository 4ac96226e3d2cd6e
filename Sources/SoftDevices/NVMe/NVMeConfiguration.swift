// SPDX-License-Identifier: Apache-2.0
//
// What an NVMe controller is made of: its namespaces and limits, as a machine file gives them.

/// An NVMe controller's parameters.
public struct NVMeConfiguration: Hashable, Sendable {
  /// One namespace; their numbers are 1 and up, in order.
  public struct Namespace: Hashable, Sendable {
    /// The file that keeps its blocks; nil for memory, which is zero at first and gone at last.
    public var file: String?
    /// In bytes, a multiple of `blockSize`; nil for what the file has.
    public var size: UInt64?
    /// Of a logical block, in bytes: 512 or 4096.
    public var blockSize: Int
    public var isReadOnly: Bool
    /// Whether other controllers may have the file too, which say so of it as well. Of a file
    /// only.
    public var isShared: Bool

    public init(
      file: String? = nil, size: UInt64? = nil, blockSize: Int = 512, isReadOnly: Bool = false,
      isShared: Bool = false
    ) {
      self.file = file
      self.size = size
      self.blockSize = blockSize
      self.isReadOnly = isReadOnly
      self.isShared = isShared
    }
  }

  public var namespaces: [Namespace]
  /// At most 20 characters of ASCII.
  public var serial: String
  /// At most 40 characters of ASCII.
  public var modelName: String
  /// Pairs of I/O queues that there may be, 1 to `queueLimit`. There is an interrupt vector for
  /// each, and one for the admin queues.
  public var queues: Int
  /// Entries that an I/O queue may have, 2 to 65536.
  public var queueEntries: Int
  /// The longest transfer of one command: log2 of pages of 4 KiB, 1 to 10.
  public var transferLimit: UInt8
  /// As lspci shows them; drivers go by the class.
  public var vendor: UInt16
  public var device: UInt16
  /// What tells controllers apart that share a namespace, with one serial number: CNTLID, 0 to
  /// 0xFFEF.
  public var controllerID: UInt16 = 0

  /// How long an idle controller polls its doorbells before it rests, in processor time of its own:
  /// longer than a driver takes from a completion to the next command, far shorter than anybody
  /// would notice; and where processors are short, the driver had its turn meanwhile.
  public var idlePolling = Duration.microseconds(150)

  /// What one page of doorbells, and one of MSI-X vectors, has room for.
  public static let queueLimit = 255
  public static let transferLimits: ClosedRange<UInt8> = 1...10
  public static let blockSizes = [512, 4096]

  public init(
    namespaces: [Namespace], serial: String = "SWIFTIOMMU0001",
    modelName: String = "swift-iommu NVMe controller", queues: Int = 16,
    queueEntries: Int = 2048, transferLimit: UInt8 = 7, vendor: UInt16 = 0x1b36,
    device: UInt16 = 0x0010
  ) {
    self.namespaces = namespaces
    self.serial = serial
    self.modelName = modelName
    self.queues = queues
    self.queueEntries = queueEntries
    self.transferLimit = transferLimit
    self.vendor = vendor
    self.device = device
  }

  /// The longest transfer, in bytes.
  var maximumTransfer: Int { 4096 << Int(transferLimit) }
}
