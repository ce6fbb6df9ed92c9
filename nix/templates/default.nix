{
  p40 = {
    path = ./p40;
    description = "A host with a Tesla P40, without a display: Ollama, Open WebUI and monitoring";
  };
  p4000-gtx1060 = {
    path = ./p4000-gtx1060;
    description = "A workstation with a Quadro P4000 and a GeForce GTX 1060: Ollama over both";
  };
  k80 = {
    path = ./k80;
    description = "A box with a Tesla K80: llama.cpp on both dies, with the last driver for Kepler";
  };
  p4-edge = {
    path = ./p4-edge;
    description = "An edge node with a Tesla P4: llama.cpp for others on the network, containers";
  };
}
