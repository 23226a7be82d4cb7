"""`queryloop replay`: a log file is sent again, through the real emitter, broker and worker."""
