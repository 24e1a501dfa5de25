package onsite

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/musterfleet/muster"
)

// BrokerFile is the file in the folder of muster's agent that replaces the
// addresses of the broker.
const BrokerFile = "broker.urls"

// ReadBroker returns the addresses in a file, one a line, none if there is no
// such file or no name for it.
func ReadBroker(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "read the broker's addresses: %w", err)
	}
	urls := strings.Fields(string(data))
	if err := checkURLs(urls); err != nil {
		return nil, muster.Errorf(muster.Invalid, "%s: %w", path, err)
	}
	return urls, nil
}

// WriteBroker replaces the addresses.
func WriteBroker(path string, urls []string) error {
	if path == "" {
		return muster.Errorf(muster.Unsupported, "no agent of a fleet is known on this machine")
	}
	if err := checkURLs(urls); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return muster.Errorf(muster.NotFound, "no agent of a fleet has its state at %s", filepath.Dir(path))
	}
	return replaceFile(path, []byte(strings.Join(urls, "\n")+"\n"), 0o600)
}

func checkURLs(urls []string) error {
	if len(urls) > MaxURLs {
		return muster.Errorf(muster.Invalid, "%d addresses are too many; %d are possible", len(urls), MaxURLs)
	}
	for _, u := range urls {
		scheme, host, found := strings.Cut(u, "://")
		known := scheme == "nats" || scheme == "tls" || scheme == "ws" || scheme == "wss"
		if !found || !known || host == "" || len(u) > maxName || strings.ContainsAny(u, " \t\r\n@") {
			return muster.Errorf(muster.Invalid, "%q is no address of a broker", cut(u, 100)).WithHint("an address is like tls://broker.example.net:4222")
		}
	}
	return nil
}

// replaceFile writes a file next to its place and moves it there.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return fileError("write", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fileError("write", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

func fileError(doing string, err error) error {
	kind := muster.Failed
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = muster.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = muster.Denied
	}
	return muster.Errorf(kind, "%s: %w", doing, err)
}
