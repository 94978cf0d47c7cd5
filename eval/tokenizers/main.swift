// Token ids of the texts of standard input, a JSON list, by the rules of the file that is named.

import Foundation

let rules = try Data(contentsOf: URL(fileURLWithPath: CommandLine.arguments[1]))
let tokenizer = try makeTokenizer(rules: rules)
let texts = try JSONDecoder().decode([String].self, from: FileHandle.standardInput.readDataToEndOfFile())
FileHandle.standardOutput.write(try JSONEncoder().encode(texts.map(tokenizer.encode)))
