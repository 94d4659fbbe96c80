"""The policy's tools: OpenHands' names and schemas, carried out in the sandbox."""
