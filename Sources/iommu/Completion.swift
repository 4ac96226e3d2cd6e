// SPDX-License-Identifier: Apache-2.0
//
// `iommu completion`: what a shell needs to complete our commands.

import ArgumentParser

struct Completion: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Print a completion script for a shell.",
    discussion: """
      Examples:
        iommu completion bash > ~/.local/share/bash-completion/completions/iommu
        iommu completion zsh > ~/.zfunc/_iommu
        iommu completion fish > ~/.config/fish/completions/iommu.fish
      """)

  enum Shell: String, CaseIterable, ExpressibleByArgument {
    case bash, zsh, fish
  }

  @Argument(help: "bash, zsh or fish.")
  var shell: Shell

  func run() throws {
    let kind: CompletionShell =
      switch shell {
      case .bash: .bash
      case .zsh: .zsh
      case .fish: .fish
      }
    Terminal.print(IOMMUTool.completionScript(for: kind) + "\n")
  }
}
