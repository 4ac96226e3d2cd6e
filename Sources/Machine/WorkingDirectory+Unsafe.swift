// SPDX-License-Identifier: Apache-2.0
//
// Where this process is, for paths that have to hold when it is elsewhere.

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// The working directory, without a slash at its end; empty for the root, or where it is gone.
func workingDirectory() -> String {
  // SAFETY: the C library allocates the text, which is copied and freed here.
  guard let text = unsafe getcwd(nil, 0) else { return "" }
  defer { unsafe free(text) }
  let path = unsafe String(cString: text)
  return path == "/" ? "" : path
}
