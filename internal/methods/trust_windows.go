package methods

import "io/fs"

// Windows says who may write and run files by other means, which are left to
// the administrator.

func trusted(fs.FileInfo) error { return nil }

func executable(fs.FileInfo) bool { return true }
