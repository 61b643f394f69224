"""Writers of data set folders: in one go, or resumable and with several processes."""
