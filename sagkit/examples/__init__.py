"""Runnable training loops of other people's kind with walk pairing dropped in; the added lines end in `# +`."""
