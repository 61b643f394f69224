"""Writers: a data set as a folder, in one go or resumable and by several processes."""
