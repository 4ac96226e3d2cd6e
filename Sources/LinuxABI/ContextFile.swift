// SPDX-License-Identifier: Apache-2.0
//
// How a device file recognises the other fd of a bind (MODEL A2: who presents both may
// connect them).

import IOMMU

/// An open file that is a context: /dev/iommu.
public protocol ContextFile: OpenFile {
  var context: Context { get }
}
