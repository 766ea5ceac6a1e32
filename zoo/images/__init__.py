"""Pictures: files decoded safely, a digit found in one, and digits drawn stroke by stroke."""
