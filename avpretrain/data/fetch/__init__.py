"""Downloads of public data sets: files by HTTP, archives, clips of YouTube; what is gone is reported."""
