"""Records: schema, store on disk, sinks."""
