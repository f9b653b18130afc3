// The page at /: a chat that streams, tokens per second, and both lanes of the last steps as /debug/steps
// tells them. One file of text that asks nobody else for anything.
#pragma once

namespace duet {

extern const char* const kPage;

}  // namespace duet
