//go:build !linux

package onsite

func kernelAndArch() (kernel, arch string) { return "", "" }

func diskSpace(string) (total, free int64, ok bool) { return 0, 0, false }
