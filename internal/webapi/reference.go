package webapi

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the reference
	"fmt"
	"net/http"
	"time"
)

// reference is the API as an OpenAPI 3.1 document. It is made of the table of
// routes, the types of their operations and the comments in the source, as is
// docs/api.md, and a test fails when it is older than those.
//
//go:generate go test -count=1 -run ^TestReference$ . -update
//go:embed openapi.json
var reference []byte

var referenceTag = fmt.Sprintf("%q", fmt.Sprintf("%x", sha256.Sum256(reference))[:32])

// openAPI shows the reference to anybody.
func (s *Server) openAPI(w http.ResponseWriter, r *http.Request) {
	pass, err := s.begin(w, r, "")
	defer pass.end()
	if err == nil {
		err = pass.nobody()
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-cache") // keep it, and ask whether it is the newest
	h.Set("ETag", referenceTag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(reference))
}
