"""Everything that runs on Ray: sources, decode, the annotating actor, the sink, resume, the session."""
