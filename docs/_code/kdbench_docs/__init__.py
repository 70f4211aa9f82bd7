"""Pages of the site that are made from the code: methods, command line, schemas."""
