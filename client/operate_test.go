package client

import (
	"crypto/x509"
	"testing"
	"time"
)

func TestCertificateIsMissedBeforeItEnds(t *testing.T) {
	for left, want := range map[time.Duration]string{
		31 * 24 * time.Hour: "ok",
		29 * 24 * time.Hour: "warn",
		time.Minute:         "warn",
	} {
		var h Health
		checkCertificate(&x509.Certificate{NotAfter: time.Now().Add(left)}, &h)
		if len(h.Checks) != 1 || h.Checks[0].Level != want || (want == "warn") != (h.Checks[0].Hint != "") {
			t.Errorf("%v before the end: got %+v, want %s", left, h.Checks, want)
		}
	}
	var h Health
	if checkCertificate(nil, &h); len(h.Checks) != 0 {
		t.Errorf("without TLS: got %+v", h.Checks)
	}
}
