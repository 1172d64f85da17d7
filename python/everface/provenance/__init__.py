"""Where a video comes from: signed when it is made (C2PA), checked by `everface verify`, noted in the audit log."""
